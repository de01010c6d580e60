# SPDX-License-Identifier: Apache-2.0
"""Too few devices for two, a great many times."""

import os

from cluster.test_scarcity import contend
from cluster.world import World

CONTENTIONS = int(os.environ.get("SOAK_CONTENTIONS", "200"))


def test_two_that_want_three_of_four_never_wait_for_each_other(world: World) -> None:
    contend(world, rounds=CONTENTIONS)
