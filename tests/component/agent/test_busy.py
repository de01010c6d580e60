# SPDX-License-Identifier: Apache-2.0
"""One target pod that keeps the agent waiting delays nobody else: neither a loss nor a device that
is gone. And what is waited for is not said to be granted when it cannot be used.
"""

from devicemount_agent.model import Concern
from devicemount_agent_api.v1 import agent_pb2 as pb
from node.agent.containers import Actor

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
            await until(lambda: not can_open(stuck, "vcs1"), "also that of the pod itself")
            await until(lambda: not allowed(third, VCSU), "the device that is gone is withheld")


async def test_what_is_waited_for_is_said_to_be_granted_only_while_it_can_be_used(
    node: Node,
) -> None:
    target = node.target()
    async with node.agent() as agent:
        await node.apply(target, node.reserved(target, "vcs1"))
        assert isinstance(target.box.inside, Actor)
        target.box.inside.open("/dev/vcs1")
        busy = await node.remove(target)
        assert busy.phase == pb.BUSY
        assert busy.granted_unix_ns
        (grant,) = agent.grafts.ledger.grants.values()
        agent.grafts.note_blocked((grant,), Concern("FilterBlocked", "an ancestor denies it"))
        (blocked,) = await node.states()
        assert (blocked.phase, blocked.granted_unix_ns) == (pb.BUSY, 0)
