# SPDX-License-Identifier: Apache-2.0
"""An agent whose journal was cut, or is gone, finds the grant in the kernel and in what kubelet and
runtime say: the mount goes on, and is given back to the last trace.
"""

from cluster.world import SYSTEM, Pod, World, eventually
from devicemount_testbed.api import Object

JOURNAL = "/run/devicemount/journal"
PODS = f"/api/v1/namespaces/{SYSTEM}/pods"


def agent_on(world: World, node: str) -> Object | None:
    """Return the agent of a node, if it is ready and not about to go."""
    selector = "?labelSelector=app.kubernetes.io/component%3Dagent"
    for pod in world.api.call("GET", f"{PODS}{selector}")["items"]:
        statuses = pod["status"].get("containerStatuses") or [{}]
        is_here = pod["spec"].get("nodeName") == node and statuses[0].get("ready")
        if is_here and "deletionTimestamp" not in pod["metadata"]:
            found: Object = pod
            return found
    return None


def restart_agent(world: World, node: str) -> None:
    before = agent_on(world, node)
    assert before is not None
    world.api.delete(f"{PODS}/{before['metadata']['name']}")

    def is_another_ready() -> bool:
        now = agent_on(world, node)
        return now is not None and now["metadata"]["uid"] != before["metadata"]["uid"]

    eventually(is_another_ready, what="the next agent is ready", deadline_s=60)


def printed(world: World, node: str) -> str:
    agent = agent_on(world, node)
    assert agent is not None
    name = agent["metadata"]["name"]
    said: str = world.testbed.kubectl(
        "exec", "-n", SYSTEM, name, "-c", "agent", "--", "devicemount-agent", "journal"
    )
    return said


CUT = f"head -n 1 {JOURNAL}/journal > /tmp/header && cat /tmp/header > {JOURNAL}/journal"
GONE = f"rm -r {JOURNAL}"


def test_a_cut_journal_is_rebuilt(world: World, node: str) -> None:
    pod: Pod = world.pod("notebook", node=node)
    mount = world.mount("goes-on", pod).ready()
    (path,) = mount.files()
    assert f"{world.namespace}/notebook/main: committed" in printed(world, node)
    with pod.holding(path):
        for damage in (CUT, GONE):
            world.testbed.exec(node, ["sh", "-c", damage])
            restart_agent(world, node)
            eventually(
                lambda: f"{world.namespace}/notebook/main: committed" in printed(world, node),
                what="the grant is found",
            )
            assert "damage: none" in printed(world, node)
            assert pod.opens(path)
        mount.ask_delete()
        mount.not_ready("DeviceBusy", deadline_s=20)
    mount.gone()
    assert pod.openable() == set()
