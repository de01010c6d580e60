# SPDX-License-Identifier: Apache-2.0
"""Killed at any step, operator and agent end mounted or clean; access that existed goes on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.world import SYSTEM, Pod, World, eventually
from devicemount_agent_api.failpoints import EXIT_STATUS, Failpoint
from devicemount_testbed.api import Object

OPERATOR = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/devicemount-operator"
AGENT = f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/devicemount-agent"
STRATEGIC = "application/strategic-merge-patch+json"
POLICY = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings"


def _set_failpoint(world: World, workload: str, container: str, point: Failpoint | None) -> None:
    """Arm the failpoint and wait until the workload runs with it; None disarms."""
    env: Object = {"name": "DM_FAILPOINT"}
    env.update({"value": point.value} if point else {"$patch": "delete"})
    spec = {"template": {"spec": {"containers": [{"name": container, "env": [env]}]}}}
    patched = world.api.call("PATCH", workload, {"spec": spec}, kind=STRATEGIC)

    def rolled_out(found: Object | None) -> bool:
        status = (found or {}).get("status", {})
        if status.get("observedGeneration", 0) < patched["metadata"]["generation"]:
            return False
        if workload == OPERATOR:
            return (
                status.get("updatedReplicas") == 1
                and status.get("replicas") == 1
                and status.get("readyReplicas") == 1
            )
        wanted = status["desiredNumberScheduled"]
        return (
            status.get("updatedNumberScheduled") == wanted and status.get("numberReady") == wanted
        )

    world.api.until(workload, rolled_out, deadline_s=60, what="rolled out")


def _kills(world: World, component: str) -> int:
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
def _armed(world: World, point: Failpoint) -> Iterator[None]:
    """Arm it; at the end it must have fired, the component must run again, and it is disarmed."""
    component = point.value.split("-")[0]
    workload = OPERATOR if component == "operator" else AGENT
    if component == "agent":
        for node in world.testbed.nodes:
            marker = f"/run/devicemount/fired-{point.value}"
            world.testbed.exec(node, ["rm", "-f", marker])
    _set_failpoint(world, workload, component, point)
    try:
        yield
        eventually(lambda: _kills(world, component) > 0, what=f"{point.value} fired")
    finally:
        _set_failpoint(world, workload, component, None)


@pytest.fixture
def bystander(world: World) -> Iterator[Pod]:
    """A pod whose device, granted before, is opened all the time and must never be refused."""
    pod = world.pod("bystander", node="node2")
    mount = world.mount("bystander", pod, resource="testbed.devicemount.io/loop").ready()
    (path,) = mount.files()
    pod.sh(
        f"while :; do if ! true 2>/dev/null < {path}; then echo refused >> /tmp/refused; fi; "
        "usleep 20000; done > /dev/null 2>&1 & echo $! > /tmp/prober"
    )
    yield pod
    assert not pod.exists("/tmp/refused"), "access that existed was cut"
    pod.sh("kill $(cat /tmp/prober)")
    mount.delete()


@pytest.mark.parametrize(
    "point",
    [
        Failpoint.OPERATOR_AFTER_SHADOW_POD,
        Failpoint.OPERATOR_AFTER_GRANT,
        Failpoint.AGENT_AFTER_INTENT,
        Failpoint.AGENT_AFTER_GRANT,
        Failpoint.AGENT_BEFORE_COMMIT,
    ],
    ids=lambda point: point.value,
)
def test_killed_while_mounting_it_ends_mounted(
    world: World, bystander: Pod, point: Failpoint
) -> None:
    pod = world.pod("notebook", node="node1")
    with _armed(world, point):
        mount = world.mount("survives", pod).ready(deadline_s=60)
        assert pod.openable() == {path.rpartition("/")[2] for path in mount.files()}
        assert len(mount.shadow_pods()) == 1
    mount.delete()
    assert pod.openable() == set()


def test_killed_after_the_revocation_it_ends_clean(world: World, bystander: Pod) -> None:
    pod = world.pod("notebook", node="node1")
    with _armed(world, Failpoint.OPERATOR_AFTER_REVOKE):
        mount = world.mount("survives", pod).ready()
        mount.delete(deadline_s=60)
        assert pod.openable() == set()
        assert world.shadow_pods()[0:] == [
            p
            for p in world.shadow_pods()
            if p["metadata"]["annotations"]["devicemount.io/mount"] == "bystander"
        ]


def test_deleted_before_its_finalizer_nothing_is_left(world: World) -> None:
    """Without the finalizer policy, the operator killed between shadow pod and finalizer."""
    name = "devicemount-finalizer"
    binding = world.api.call("GET", f"{POLICY}/{name}")
    pod, free = world.pod("notebook", node="node1"), world.free("node1")
    world.api.delete(f"{POLICY}/{name}")
    try:
        eventually(lambda: not _finalizers_at_admission(world), what="the policy is off")
        with _armed(world, Failpoint.OPERATOR_AFTER_SHADOW_POD):
            mount = world.mount("early", pod)
            eventually(lambda: _kills(world, "operator") > 0, what="the operator was killed")
            mount.delete()
            eventually(
                lambda: not world.shadow_pods(), what="the shadow pod is gone", deadline_s=60
            )
    finally:
        fresh = {k: binding[k] for k in ("apiVersion", "kind", "spec")}
        world.api.call("POST", POLICY, {**fresh, "metadata": {"name": name}})
        eventually(lambda: _finalizers_at_admission(world), what="the policy is on again")
    assert pod.openable() == set()
    assert world.free("node1") == free


def _finalizers_at_admission(world: World) -> bool:
    """Tell by a dry run whether the policy puts the finalizer on new objects."""
    body = {
        "apiVersion": "devicemount.io/v1alpha1",
        "kind": "DeviceMount",
        "metadata": {"name": "dry"},
        "spec": {"target": {"podName": "x"}, "resources": {"limits": {"example.com/x": 1}}},
    }
    path = f"/apis/devicemount.io/v1alpha1/namespaces/{world.namespace}/devicemounts?dryRun=All"
    return "devicemount.io/finalizer" in json.dumps(
        world.api.call("POST", path, body)["metadata"].get("finalizers", [])
    )
