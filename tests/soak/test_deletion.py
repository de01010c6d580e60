# SPDX-License-Identifier: Apache-2.0
"""A node that lives and whose agent does not come back, on the real cluster."""

from cluster.test_deletion import end_without_an_agent
from cluster.world import World


def test_an_agent_that_is_gone_for_good_leaves_the_pods_last_word_or_an_administrators(
    world: World,
) -> None:
    end_without_an_agent(world)
