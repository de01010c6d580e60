# SPDX-License-Identifier: Apache-2.0
"""Thousands of rounds, storms and a long wait: nothing leaks, nothing opens that should not."""

import os
import time

from cluster.world import FUSE, World

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "1000"))
STORMS = int(os.environ.get("SOAK_STORMS", "100"))
HELD_S = float(os.environ.get("SOAK_HELD_S", "600"))


def test_rounds_of_mount_and_unmount(world: World, node: str) -> None:
    pod, free = world.pod("notebook", node=node), world.free(node)
    before = pod.identity()
    for number in range(ROUNDS):
        mount = world.mount(f"round-{number}", pod).ready()
        assert pod.openable() == {path.rpartition("/")[2] for path in mount.files()}, number
        mount.delete()
        assert pod.openable() == set(), number
    assert pod.identity() == before
    assert world.free(node) == free
    assert world.shadow_pods() == []


def test_storms_of_mounts_on_one_container(world: World, node: str) -> None:
    pod, free = world.pod("notebook", node=node), world.free(node)
    for storm in range(STORMS):
        mounts = [world.mount(f"vcs-{storm}-{n}", pod) for n in range(4)]
        mounts += [world.mount(f"fuse-{storm}-{n}", pod, resource=FUSE) for n in range(4)]
        for mount in mounts:
            mount.ready(deadline_s=120)
        assert len(pod.openable()) == 4, storm
        for mount in mounts:
            mount.ask_delete()
        for mount in mounts:
            mount.gone(deadline_s=120)
        assert pod.openable() == set(), storm
    assert world.free(node) == free


def test_a_device_that_is_held_for_long_is_returned_in_the_end(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    mount = world.mount("held", pod).ready()
    with pod.holding(mount.files()[0]):
        mount.ask_delete()
        mount.not_ready("DeviceBusy", deadline_s=10)
        end = time.monotonic() + HELD_S
        while time.monotonic() < end:
            assert pod.opens(mount.files()[0])
    mount.gone()
    assert pod.openable() == set()
