# SPDX-License-Identifier: Apache-2.0
"""Ascend cards for a pod that runs, in both of the plugin's modes, on a stand-in machine."""

from collections.abc import Iterator

import pytest

from cluster.borrowing import ALLOWED, await_allocatable, borrow, opens_by_number
from cluster.world import World
from devicemount_testbed.cluster import Testbed
from vendor_answers import resolution
from vendors.ascend import CARD, DEVICE_MODE, RUNTIME_MODE, Ascend, ascend
from vendors.inside import expected_nodes

ROOT = resolution()["ascend"]["fake_root"]


@pytest.fixture(scope="module", params=["node1", "node2"])
def cards(request: pytest.FixtureRequest, testbed: Testbed) -> Iterator[Ascend]:
    with ascend(testbed, str(request.param)) as made:
        yield made


@pytest.mark.parametrize("mode", [RUNTIME_MODE, DEVICE_MODE])
def test_two_cards(world: World, cards: Ascend, mode: str) -> None:
    case = cards.answers(mode)
    await_allocatable(world, cards.node, {CARD: 2})
    loan = borrow(world, world.pod("notebook", node=cards.node), {CARD: 2})
    assert loan.came.nodes == expected_nodes(case, ROOT)
    assert (loan.came.links, loan.came.mounts) == ({}, {})
    numbers = loan.came.numbers().values()
    assert set(opens_by_number(loan.pod, numbers).values()) == {ALLOWED}
    loan.give_back()
