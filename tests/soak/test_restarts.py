# SPDX-License-Identifier: Apache-2.0
"""Containers that are killed often, and reservations that are lost often."""

import os

import pytest

from cluster.test_loss_alone import never_two_tenants, priorities
from cluster.test_restart import opens_again
from cluster.world import World

KILLS = int(os.environ.get("SOAK_KILLS", "20"))
LOSSES = int(os.environ.get("SOAK_LOSSES", "10"))

__all__ = ["priorities"]


@pytest.fixture(params=range(LOSSES))
def turn(request: pytest.FixtureRequest) -> int:
    """Each turn has a namespace of its own."""
    return int(request.param)


def test_killed_many_times_it_opens_within_a_moment(world: World) -> None:
    opens_again(world, kills=KILLS)


@pytest.mark.usefixtures("turn")
def test_lost_many_times_no_device_ever_has_two_tenants(
    world: World, priorities: dict[str, str]
) -> None:
    never_two_tenants(world, priorities)
