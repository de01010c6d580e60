# SPDX-License-Identifier: Apache-2.0
"""Failpoints of operator and agent, armed for a while, and a bystander who must not notice."""

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.world import LOOP, SYSTEM, Pod, World, eventually
from devicemount_agent_api.failpoints import EXIT_STATUS, Failpoint
from devicemount_testbed.api import Object

OPERATOR = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/devicemount-operator"
AGENT = f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/devicemount-agent"
STRATEGIC = "application/strategic-merge-patch+json"


def set_failpoint(world: World, workload: str, container: str, point: Failpoint | None) -> None:
    """Arm the failpoint and wait until the workload runs with it; None disarms."""
    env: Object = {"name": "DM_FAILPOINT"}
    env.update({"value": point.value} if point else {"$patch": "delete"})
    spec = {"template": {"spec": {"containers": [{"name": container, "env": [env]}]}}}
    world.api.call("PATCH", workload, {"spec": spec}, kind=STRATEGIC)
    rolled_out(world, workload)


def rolled_out(world: World, workload: str = OPERATOR) -> None:
    """Wait until every pod of the workload is as it should be, and ready."""

    def is_done(found: Object | None) -> bool:
        if found is None:
            return False
        status = found["status"]
        if status.get("observedGeneration", 0) < found["metadata"]["generation"]:
            return False
        if workload == OPERATOR:
            return (
                status.get("updatedReplicas")
                == status.get("replicas")
                == status.get("readyReplicas")
                == found["spec"]["replicas"]
            )
        wanted = status["desiredNumberScheduled"]
        return (
            status.get("updatedNumberScheduled") == wanted and status.get("numberReady") == wanted
        )

    world.api.until(workload, is_done, deadline_s=60, what="rolled out")


def kills(world: World, component: str) -> int:
    """Return how many containers of the component ended at a failpoint."""
    selector = f"?labelSelector=app.kubernetes.io/component%3D{component}"
    pods = world.api.call("GET", f"/api/v1/namespaces/{SYSTEM}/pods{selector}")["items"]
    ended = (
        status.get("lastState", {}).get("terminated", {})
        for pod in pods
        for status in pod["status"].get("containerStatuses", [])
    )
    return sum(1 for state in ended if state.get("exitCode") == EXIT_STATUS)


@contextmanager
def armed(world: World, point: Failpoint) -> Iterator[None]:
    """Arm it; at the end it must have fired, the component must run again, and it is disarmed."""
    component = point.value.split("-")[0]
    workload = OPERATOR if component == "operator" else AGENT
    if component == "agent":
        for node in world.testbed.nodes:
            marker = f"/run/devicemount/fired-{point.value}"
            world.testbed.exec(node, ["rm", "-f", marker])
    set_failpoint(world, workload, component, point)
    try:
        yield
        eventually(lambda: kills(world, component) > 0, what=f"{point.value} fired")
    finally:
        set_failpoint(world, workload, component, None)


@contextmanager
def bystanding(world: World) -> Iterator[Pod]:
    """A pod whose device, granted before, is opened all the time and must never be refused."""
    pod = world.pod("bystander", node="node2")
    mount = world.mount("bystander", pod, resource=LOOP).ready()
    (path,) = mount.files()
    pod.sh(
        f"while :; do if ! true 2>/dev/null < {path}; then echo refused >> /tmp/refused; fi; "
        "usleep 20000; done > /dev/null 2>&1 & echo $! > /tmp/prober"
    )
    yield pod
    assert not pod.exists("/tmp/refused"), "access that existed was cut"
    pod.sh("kill $(cat /tmp/prober)")
    mount.delete()
