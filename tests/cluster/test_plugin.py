# SPDX-License-Identifier: Apache-2.0
"""The device plugin with a real kubelet: what the kubelet believes follows what the node has."""

import json
from pathlib import Path

from cluster.world import FUSE, LOOP, VCS, World, eventually
from devicemount_testbed.cluster import Testbed

CHECKPOINT = "var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"
DEVICES = {
    LOOP: {"loop0", "loop1", "loop2", "loop3"},
    VCS: {"vcs", "vcs1", "vcsa1", "vcsu1"},
    FUSE: {"fuse::0", "fuse::1", "fuse::2", "fuse::3"},
}
UEVENT = "/sys/class/block/loop3/uevent"  # writing "change" tells listeners, no more


def checkpoint(testbed: Testbed, node: str) -> Path:
    return testbed.node_root(node) / CHECKPOINT


def healthy(testbed: Testbed, node: str) -> dict[str, set[str]]:
    """Return the ids that the kubelet may give away, by resource, from its checkpoint."""
    written = checkpoint(testbed, node).read_text()
    registered = json.loads(written)["Data"]["RegisteredDevices"] or {}
    return {resource: set(ids or ()) for resource, ids in registered.items()}


def test_the_kubelet_knows_every_device_by_its_id(testbed: Testbed, node: str) -> None:
    assert healthy(testbed, node) == DEVICES


def test_a_device_that_goes_and_comes_back_keeps_its_id(testbed: Testbed, node: str) -> None:
    away = f"mv /dev/loop3 /dev/away; echo change > {UEVENT}"
    back = f"mv /dev/away /dev/loop3; echo change > {UEVENT}"
    try:
        assert testbed.exec(node, ["sh", "-c", away]).returncode == 0
        eventually(lambda: "loop3" not in healthy(testbed, node)[LOOP], what="loop3 is unhealthy")
        assert len(healthy(testbed, node)[LOOP]) == 3
    finally:
        testbed.exec(node, ["sh", "-c", back])
    eventually(lambda: "loop3" in healthy(testbed, node)[LOOP], what="loop3 is healthy")


def test_a_restarted_kubelet_knows_the_devices_again_and_gives_them_away(world: World) -> None:
    node = "node1"
    path = checkpoint(world.testbed, node)
    before = path.stat().st_mtime_ns
    assert world.testbed.exec(node, ["sh", "-c", "kill -9 $(pidof kubelet)"]).returncode == 0
    # Its first write after the start has the devices of those that have registered since.
    eventually(
        lambda: path.stat().st_mtime_ns > before and healthy(world.testbed, node) == DEVICES,
        what="every resource is registered again",
    )
    # Not through the scheduler, which hears of the devices with the next report of the node.
    pod = world.pod("borrower", node=node, limits={LOOP: 1}, nodeName=node)
    assert "loop" in pod.sh("ls /dev")
