# SPDX-License-Identifier: Apache-2.0
"""The vendors' long runs: 200 rounds of a plugin that guesses, a spec that comes 45 s late, and the
agent killed at each point of a mount.
"""

import os
import time
from collections.abc import Mapping

import pytest

from cluster.borrowing import apply, await_allocatable, look
from cluster.test_cdi import boards, killed
from cluster.test_volcano import machines, rounds
from cluster.world import Pod, World
from devicemount_agent_api.failpoints import Failpoint
from vendors.cdi import RESOURCE, Board
from vendors.volcano import Volcano

__all__ = ["boards", "machines"]

ROUNDS = int(os.environ.get("SOAK_SERIALISED_ROUNDS", "200"))
LATE_S = float(os.environ.get("SOAK_LATE_S", "45"))
OTHERS_OF_A_MOUNT = (  # the rest of cluster.test_cdi's
    Failpoint.AGENT_AFTER_INTENT,
    Failpoint.AGENT_AFTER_GRANT,
    Failpoint.AGENT_BEFORE_COMMIT,
)


def test_never_the_slice_of_another(world: World, machines: Mapping[str, Volcano]) -> None:
    assert rounds(world, machines, count=ROUNDS)


@pytest.mark.parametrize("boards", ["node1", "node2"], indirect=True)
def test_a_spec_that_comes_late(world: World, boards: Board) -> None:
    boards.remove_spec()
    await_allocatable(world, boards.node, {RESOURCE: 1})
    pod = world.pod("notebook", node=boards.node)
    before = look(pod)
    mount = apply(world, pod, {RESOURCE: 1})
    end = time.monotonic() + LATE_S
    while time.monotonic() < end:
        assert look(pod) == before
    boards.write_spec()
    mount.ready(deadline_s=60)
    mount.delete()
    assert look(pod) == before


@pytest.mark.parametrize("boards", ["node1"], indirect=True)
@pytest.mark.parametrize("point", OTHERS_OF_A_MOUNT, ids=lambda point: point.value)
def test_a_killed_agent_ends_mounted_or_clean(
    world: World, boards: Board, bystander: Pod, point: Failpoint
) -> None:
    killed(world, boards, point)
