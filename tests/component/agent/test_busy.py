# SPDX-License-Identifier: Apache-2.0
"""One target pod that keeps the agent waiting delays nobody else: neither a loss nor a device that
is gone. And what is waited for is not said to be granted when it cannot be used.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from devicemount_agent import withdrawal
from devicemount_agent.holders import search
from devicemount_agent.holders.search import HANDED_ON, UNSTOPPED, Found, Question
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import Concern, PodUID
from devicemount_agent_api.v1 import agent_pb2 as pb
from node.agent.containers import Actor, in_freezer, wait_for_silent_server
from node.agent.waiting import until as wait_until

from .conftest import RESOURCE, Node, Target
from .fences import fence
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


@dataclass
class Deaf:
    """A target with a process that waits in the kernel, where it is not stopped."""

    target: Target
    waiting: int  # its pid
    answered: Callable[[], None]  # ends the wait


@pytest.fixture
def deaf(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deaf]:
    monkeypatch.setattr(withdrawal, "WAIT_S", 0.1)
    with ExitStack() as stack:
        server = stack.enter_context(ExitStack())
        fd = server.enter_context(closing(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)))
        target = node.target(pass_fds=(fd,))
        stack.enter_context(in_freezer(target.box))
        yield Deaf(target, wait_for_silent_server(target.box, fd), server.close)
        server.close()


@pytest.mark.parametrize("policy", [pb.WAIT, pb.TERMINATE], ids=["wait", "terminate"])
async def test_of_a_pod_that_cannot_be_stopped_some_process_may_have_the_device(
    node: Node, deaf: Deaf, policy: "pb.Policy.ValueType"
) -> None:
    target = deaf.target
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        busy = await node.remove(target, policy=policy)
        assert busy.phase == pb.BUSY
        (holder,) = (one for one in busy.shadow_pods[0].holders if one.blocking)
        assert (holder.pid, holder.container) == (deaf.waiting, "notebook")
        assert holder.note == UNSTOPPED
        assert can_open(target, "vcs1") is (policy == pb.WAIT)
        assert Path(f"/proc/{deaf.waiting}/fd/0").exists(), "nobody was ended for it"
        deaf.answered()
        assert (await node.remove(target, policy=policy)).phase == pb.REMOVED


async def test_nor_is_one_free_then_whose_reservation_was_lost(node: Node, deaf: Deaf) -> None:
    target = deaf.target
    async with node.agent() as agent:
        shadow = node.reserved(target, "vcs1")
        await node.apply(target, shadow)
        with fence(node, shadow) as guard:
            guard.tell_deleted()
            known = agent.grafts.holders.of
            await until(
                lambda: UNSTOPPED in {one.note for one in known(PodUID(shadow.pod.uid))},
                "it is named",
            )
            assert not can_open(target, "vcs1")
            assert guard.stands()
            deaf.answered()
            await until(lambda: not guard.stands(), "the fence is lowered")


async def test_who_goes_on_after_the_search_is_not_forgotten_for_having_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From child to child: a look without a stop may meet none of them."""

    def missed(_: Question, *, among: Iterable[int] = ()) -> Iterator[Found]:
        return search.find(_, among=among)

    def described_late(question: Question, found: list[Found]) -> withdrawal.Sightings:
        for one in found:
            wait_until(lambda pid=one.pid: not Path(f"/proc/{pid}").exists(), what="it has ended")
        return search.sightings(question, found)

    monkeypatch.setattr(withdrawal, "search", lambda question: search.sightings(question, []))
    monkeypatch.setattr(withdrawal, "find", missed)
    monkeypatch.setattr(withdrawal, "sightings", described_late)
    target = node.target()
    with in_freezer(target.box):
        async with node.agent():
            await node.apply(target, node.reserved(target, "vcs1"))
            fd = target.box.inside.open("/dev/vcs1")
            target.box.inside.tell("keep_moving", 4)
            target.box.inside.close(fd)
            busy = await node.remove(target)
            assert busy.phase == pb.BUSY
            assert HANDED_ON in {holder.note for holder in busy.shadow_pods[0].holders}
            assert can_open(target, "vcs1")
            ended = await node.remove(target, policy=pb.TERMINATE)
            assert ended.phase == pb.REMOVED
