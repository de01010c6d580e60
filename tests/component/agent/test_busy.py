# SPDX-License-Identifier: Apache-2.0
"""One target pod that keeps the agent waiting delays nobody else: neither a loss nor a device that
is gone.
"""

from .conftest import RESOURCE, Node
from .test_health import VCSU, Card, allowed, card, reserved
from .test_mount import can_open, until

__all__ = ["card"]


async def test_a_loss_is_not_delayed_by_a_pod_that_is_worked_on(node: Node, card: Card) -> None:
    stuck, other, third = node.target("stuck-0"), node.target("other-0"), node.target("third-0")
    of_stuck, of_other = node.reserved(stuck, "vcs1"), node.reserved(other, "vcsa1")
    async with node.agent() as agent:
        await node.apply(stuck, of_stuck)
        await node.apply(other, of_other)
        await node.apply(third, reserved(node, third, card))
        async with agent.grafts.lock(stuck.pod.uid):
            node.choose(node.shadow(node.target("thief-0")), "vcs1", "vcsa1")
            card.unplug()
            node.kubelet.healthy(RESOURCE, "card-1")
            await until(lambda: not can_open(other, "vcsa1"), "the loss is handled")
            await until(lambda: not allowed(third, VCSU), "the device that is gone is withheld")
        await until(lambda: not can_open(stuck, "vcs1"), "the other loss is handled")
