# SPDX-License-Identifier: Apache-2.0
"""Nodes that are emptied or kept from new work: a drain ends whatever its grace and whoever holds
the device, nothing comes back to a cordoned node, and a mount that is new is still made there."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.world import Mount, World, eventually
from devicemount_testbed.api import Object, pod_path

DRAIN_S = 30.0
LABEL = "drained"

# Ends at SIGTERM, as a well-behaved program does.
MAIN = {
    "name": "main",
    "image": "localhost/busybox:1",
    "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 60 & wait $!; done"],
}


@contextmanager
def kept(world: World, node: str) -> Iterator[None]:
    """Leave the node as it was, whatever is done to it meanwhile."""
    try:
        yield
    finally:
        world.testbed.kubectl("uncordon", node)
        world.testbed.try_kubectl("taint", "node", node, "moffett.ai/spu:NoSchedule-")


def guarded(mount: Mount) -> Object:
    """Return its shadow pod once the fence stands."""
    eventually(
        lambda: mount.shadow_pods()[0]["status"].get("phase") == "Running", what="the fence stands"
    )
    return mount.shadow_pods()[0]


def placed(world: World) -> set[str]:
    """Return the shadow pods that were ever given a node in the namespace."""
    path = f"/api/v1/namespaces/{world.namespace}/events?fieldSelector=reason%3DScheduled"
    names = {e["involvedObject"]["name"] for e in world.api.call("GET", path)["items"]}
    return {name for name in names if name.startswith("dm-")}


def label(world: World, *names: str) -> None:
    """Mark what a drain is to take: others' pods on the node are not the test's to evict."""
    for name in names:
        world.testbed.kubectl(
            "label", "pod", "-n", world.namespace, name, f"{LABEL}={world.namespace}"
        )


@pytest.mark.parametrize(("where", "grace"), [("node1", "-1"), ("node2", "10"), ("node2", "0")])
def test_a_drain_ends_whatever_its_grace_and_whoever_holds_the_device(
    world: World, where: str, grace: str
) -> None:
    free = world.free(where)
    pod = world.pod("notebook", node=where, terminationGracePeriodSeconds=30, containers=[MAIN])
    mount = world.mount("borrowed", pod).ready()
    shadow = guarded(mount)["metadata"]
    label(world, pod.name, shadow["name"])
    drain = ("drain", where, "--ignore-daemonsets", "--timeout=60s", f"--grace-period={grace}")
    ours = f"--pod-selector=devicemount.io/shadow={shadow['labels']['devicemount.io/shadow']}"
    with kept(world, where):
        # The DeviceMount is the shadow pod's controller: nobody has to say --force for it.
        world.testbed.kubectl(*drain, ours, "--dry-run=server")
        with pod.holding(mount.files()[0]):
            started = time.monotonic()
            world.testbed.kubectl(*drain, f"--pod-selector={LABEL}={world.namespace}", "--force")
            assert time.monotonic() - started < DRAIN_S
        del world.pods[pod.name]
        mount.not_ready("TargetNotFound")
        eventually(lambda: world.free(where) == free, what="the device is free")
        assert world.shadow_pods() == []
        assert placed(world) == {shadow["name"]}, "nothing was reserved anew"


def test_a_cordoned_and_tainted_node_serves_its_pods_and_reserves_nothing_after_a_loss(
    world: World,
) -> None:
    where = "node2"
    pod = world.pod("notebook", node=where)
    with kept(world, where):
        world.testbed.kubectl("taint", "node", where, "moffett.ai/spu=:NoSchedule")
        world.testbed.kubectl("cordon", where)
        mount = world.mount("borrowed", pod).ready()
        before, shadow = pod.identity(), guarded(mount)["metadata"]["name"]
        with pod.holding(mount.files()[0]):
            world.api.delete(pod_path(world.namespace, shadow))
            message = mount.not_ready("NodeDraining")
            assert f"node {where} is cordoned" in message
            assert not pod.sh("pidof tail").split(), "the holder is ended"
        assert pod.openable() == set()
        eventually(lambda: mount.shadow_pods() == [], what="the shadow pod is gone")
        assert pod.identity() == before
        world.testbed.kubectl("uncordon", where)
        mount.ready()
        assert len(pod.openable()) == 1
