# SPDX-License-Identifier: Apache-2.0
"""A device that passes from one mount to another without a fence between them, and losses and
terminations that something gets in the way of.
"""

import asyncio
import signal
from collections.abc import Collection

import pytest

from devicemount_agent.container.cgroup import processes_in
from devicemount_agent.errors import FilterBlocked
from devicemount_agent.graft import graft
from devicemount_agent.ledger import Grant
from devicemount_agent_api.v1 import agent_pb2 as pb
from node.agent.containers import in_freezer

from .conftest import Node
from .fences import fence
from .test_loss import mounted, uid
from .test_mount import can_open, until


async def test_the_next_mount_waits_until_the_former_holders_have_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its container runs already: it could open the device milliseconds after the choice."""
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        target.box.inside.open("/dev/vcs1")
        other = node.target("notebook-1")
        revoke, go_on = agent.grafts.revoke, asyncio.Event()

        async def slow(grants: Collection[Grant]) -> None:
            await go_on.wait()
            await revoke(grants)

        monkeypatch.setattr(agent.grafts, "revoke", slow)
        node.kubelet.forget(shadow.pod)
        heir = node.reserved(other, "vcs1", ordinal=1)
        applied = asyncio.create_task(node.apply(other, heir))
        try:
            await until(lambda: agent.losses.has_begun(uid(shadow)), "it is lost")
            await until(lambda: uid(heir) in agent.grafts.ledger.grants, "its intent")
            third = node.target("notebook-2")
            await node.apply(third, node.reserved(third, "vcsa1", ordinal=2))
            assert not can_open(other, "vcs1"), "two tenants would have it"
            assert target.box.inside.process.poll() is None
        finally:
            go_on.set()
        assert (await applied).phase == pb.GRANTED
        assert target.box.inside.process.poll() == -signal.SIGKILL


async def test_holders_end_also_where_the_filter_cannot_be_put_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ending access comes first; what cannot be tidied up behind it keeps nobody alive."""
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        target.box.inside.open("/dev/vcs1")
        permit, tried = graft.permit, 0

        def blocked(*given: object, **named: object) -> object:
            nonlocal tried
            tried += 1
            permit(*given, **named)  # type: ignore[arg-type]
            raise FilterBlocked("somebody's program")

        with fence(node, shadow) as guard:
            await until(lambda: agent.fences.stands(uid(shadow)), "the fence is seen")
            with monkeypatch.context() as patch:
                patch.setattr(graft, "permit", blocked)
                guard.vanish()
                await until(lambda: target.box.inside.process.poll() is not None, "killed")
                before = tried
                await asyncio.sleep(0.5)
                assert tried - before < 8, "it is not tried again without a pause"
        await until(lambda: agent.losses.is_settled(uid(shadow)), "settled")


async def test_what_the_container_has_by_itself_is_not_held_by_our_grant(node: Node) -> None:
    """A shared number: a control node of a device that is its own, a slice of one."""
    async with node.agent():
        own = node.target("notebook-1")
        node.runtime.containers[own.box.id].permitted = [("c", 7, 1)]
        shadow = node.reserved(own, "vcs1", ordinal=1)
        await node.apply(own, shadow)
        own.box.inside.open("/dev/vcs1")
        assert (await node.remove(own, policy=pb.LOST)).phase == pb.REMOVED
        assert own.box.inside.process.poll() is None


async def test_who_moves_on_from_child_to_child_does_not_escape(node: Node) -> None:
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        inside = target.box.inside
        fd = inside.open("/dev/vcs1")
        with in_freezer(target.box), fence(node, shadow) as guard:
            inside.tell("keep_moving", 20)
            inside.close(fd)
            await until(lambda: agent.fences.stands(uid(shadow)), "the fence is seen")
            guard.vanish()
            await until(lambda: agent.losses.is_settled(uid(shadow)), "nobody has it")
        assert [*processes_in(target.box.cgroup.path)] == [inside.pid], "it held nothing any more"
