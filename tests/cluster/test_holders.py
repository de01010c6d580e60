# SPDX-License-Identifier: Apache-2.0
"""A process that has the device open is never cut off by a deletion that can wait."""

from cluster.world import World, eventually


def test_a_busy_device_stays_until_its_holder_ends(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    mount = world.mount("busy", pod).ready()
    (path,) = mount.files()
    with pod.holding(path):
        mount.ask_delete()
        message = mount.not_ready("DeviceBusy", deadline_s=10)
        assert "tail -f /dev/null" in message
        (holder,) = mount.target["holders"]
        pids = pod.sh("pidof tail").split()
        assert str(holder["pid"]) in pids
        assert holder["command"] == "tail -f /dev/null"
        assert holder["pod"] == "notebook"
        assert pod.opens(path), "nothing is revoked while it is busy"
        assert len(mount.shadow_pods()) == 1
    mount.gone()
    assert pod.openable() == set()


def test_a_holder_is_no_obstacle_to_another_mount(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    held, other = world.mount("held", pod).ready(), world.mount("other", pod).ready()
    with pod.holding(held.files()[0]):
        other.delete()
        assert held.ready().files()


def test_a_holder_that_ends_by_itself_lets_the_deletion_end(world: World) -> None:
    pod = world.pod("notebook")
    mount = world.mount("busy", pod).ready()
    with pod.holding(mount.files()[0]):
        mount.ask_delete()
        mount.not_ready("DeviceBusy", deadline_s=10)
        pod.end_holders()
        mount.gone()
    eventually(lambda: not world.shadow_pods(), what="no shadow pod is left")
