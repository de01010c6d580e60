# SPDX-License-Identifier: Apache-2.0
"""A CDI device with nodes, mounts, links and variables: all there, all gone, whatever happens."""

from collections.abc import Iterator

import pytest

from cluster.borrowing import apply, await_allocatable, borrow, come, look
from cluster.failing import armed
from cluster.world import Pod, World
from devicemount_agent_api.failpoints import Failpoint
from devicemount_testbed.cluster import Testbed
from vendors.cdi import RESOURCE, VARIABLES, Board, board
from vendors.inside import Picture

ONE = {RESOURCE: 1}
BUSYBOX, DISTROLESS = "localhost/busybox:1", "localhost/scratch-target:1"
# Where some of it is there and some is not. The others: tests/soak/test_vendors.py; all of them, by
# an agent without a cluster: tests/component/agent/test_failpoints.py.
AGENTS = [Failpoint.AGENT_AFTER_MOUNTS]


@pytest.fixture(scope="module", params=["node1", "node2"])
def boards(request: pytest.FixtureRequest, testbed: Testbed) -> Iterator[Board]:
    with board(testbed, str(request.param)) as made:
        yield made


@pytest.mark.parametrize("boards", ["node1"], indirect=True)
def test_a_spec_that_comes_late(world: World, boards: Board) -> None:
    await_allocatable(world, boards.node, ONE)
    late(world, boards)


def late(world: World, boards: Board) -> None:
    boards.remove_spec()
    pod = world.pod("notebook", node=boards.node)
    before = look(pod)
    mount = apply(world, pod, ONE)
    said = mount.not_ready("AllocationUnknown")
    assert f"{RESOURCE}=one" in said
    assert look(pod) == before
    boards.write_spec()
    mount.ready(deadline_s=60)
    mount.delete()
    assert look(pod) == before


@pytest.mark.parametrize("image", [BUSYBOX, DISTROLESS], ids=["busybox", "distroless"])
def test_all_of_a_spec_is_there_and_all_is_gone(world: World, boards: Board, image: str) -> None:
    boards.write_spec()
    await_allocatable(world, boards.node, {RESOURCE: 2})
    pod = world.pod("notebook", node=boards.node, image=image)
    born = look(world.pod("born", node=boards.node, image=image, limits=ONE))
    loan = borrow(world, pod, ONE)

    by_limits = _besides(born, loan.before)
    assert loan.came.nodes == by_limits.nodes
    assert len(by_limits.nodes) == 2
    assert loan.came.mounts == by_limits.mounts
    assert len(by_limits.mounts) == 3
    assert loan.came.links == by_limits.links
    assert len(by_limits.links) == 2
    env = f"/run/devicemount/{loan.mount.name}.env"
    assert {env, f"/run/devicemount/{loan.mount.name}.ready"} <= loan.came.others
    if image == BUSYBOX:
        sourced = pod.sh(f". {env}; echo $BOARD $BOARD_LIBRARY; cat $BOARD_LIBRARY")
        assert sourced.startswith(f"{VARIABLES['BOARD']} {VARIABLES['BOARD_LIBRARY']}\n\x7fELF")
        loan.give_back()
    else:
        loan.mount.delete()
        assert look(pod) == loan.before


@pytest.mark.parametrize("boards", ["node1"], indirect=True)
@pytest.mark.parametrize("point", AGENTS, ids=lambda point: point.value)
def test_a_killed_agent_ends_mounted_or_clean(
    world: World, boards: Board, bystander: Pod, point: Failpoint
) -> None:
    killed(world, boards, point)


def killed(world: World, boards: Board, point: Failpoint) -> None:
    """Mount while the agent is killed at that point; what is there then is whole, and all goes."""
    boards.write_spec()
    await_allocatable(world, boards.node, ONE)
    pod = world.pod("notebook", node=boards.node)
    whole = _whole(world, pod)
    before = look(pod)
    with armed(world, point):
        mount = apply(world, pod, ONE).ready(deadline_s=60)
        assert come(pod, before) == whole
        assert len(mount.shadow_pods()) == 1
    mount.delete()
    assert look(pod) == before


def _whole(world: World, pod: Pod) -> Picture:
    """Mount and unmount once undisturbed, to know what it is when it is whole."""
    loan = borrow(world, pod, ONE)
    loan.give_back()
    return loan.came


def _besides(born: Picture, plain: Picture) -> Picture:
    """Return what a pod has from its start that another of its image has not."""
    return Picture(
        {p: n for p, n in born.nodes.items() if p not in plain.nodes},
        {p: t for p, t in born.links.items() if p not in plain.links},
        {p: m for p, m in born.mounts.items() if p not in plain.mounts},
        born.others - plain.others,
    )
