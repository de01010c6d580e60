# SPDX-License-Identifier: Apache-2.0
"""The device plugin with a real kubelet: what the kubelet believes follows what the node has."""

from cluster.checkpoint import checkpoint, healthy
from cluster.world import FUSE, LOOP, VCS, World, eventually
from devicemount_testbed.cluster import Testbed

DEVICES = {
    LOOP: {"loop0", "loop1", "loop2", "loop3"},
    VCS: {"vcs", "vcs1", "vcsa1", "vcsu1"},
    FUSE: {"fuse::0", "fuse::1", "fuse::2", "fuse::3"},
}
UEVENT = "/sys/class/block/loop3/uevent"  # writing "change" tells listeners, no more


def test_the_kubelet_knows_every_device_by_its_id(testbed: Testbed, node: str) -> None:
    assert DEVICES.items() <= healthy(testbed, node).items()


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
    world.kill(node, "kubelet")
    # Its first write after the start has the devices of those that have registered since.
    eventually(
        lambda: (
            path.stat().st_mtime_ns > before
            and DEVICES.items() <= healthy(world.testbed, node).items()
        ),
        what="every resource is registered again",
    )
    # Not through the scheduler, which hears of the devices with the next report of the node.
    pod = world.pod("borrower", node=node, limits={LOOP: 1}, nodeName=node)
    assert "loop" in pod.sh("ls /dev")
