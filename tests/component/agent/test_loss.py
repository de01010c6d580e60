# SPDX-License-Identifier: Apache-2.0
"""A reservation that goes is noticed by the agent alone: access ends first, then who holds the
device, and only then the fence is lowered.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from devicemount_agent import withdrawal
from devicemount_agent.container.find import Container
from devicemount_agent.holders import end, search
from devicemount_agent.kernel.files import closing
from devicemount_agent.ledger import Grant
from devicemount_agent.losses import reservation_lost
from devicemount_agent.model import MountUID, PodUID
from devicemount_agent_api.v1 import agent_pb2 as pb

from .conftest import DEADLINE_S, MOUNT_UID, RESOURCE, Node, Shadow, Target
from .fences import fence, show_target
from .test_mount import can_open, refusal, refused, seen, until


async def mounted(node: Node) -> tuple[Target, Shadow]:
    target = node.target()
    show_target(node)
    shadow = node.reserved(target, "vcs1")
    assert (await node.apply(target, shadow)).phase == pb.GRANTED
    return target, shadow


def uid(shadow: Shadow) -> PodUID:
    return PodUID(shadow.pod.uid)


def competitor(node: Node, target: Target) -> None:
    """Another pod gets the device."""
    rival = node.shadow(target, 9).pod
    node.kubelet.choose(rival, RESOURCE, {"vcs1": []}, container="competitor")


class Gate:
    """Keeps who calls a function waiting, before or after it is done, until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def _wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(DEADLINE_S)

    def in_front_of(self, function: Callable[..., object]) -> Callable[..., object]:
        def gated(*arguments: object, **named: object) -> object:
            self._wait()
            return function(*arguments, **named)

        return gated

    def behind(self, function: Callable[..., object]) -> Callable[..., object]:
        def gated(*arguments: object, **named: object) -> object:
            answer = function(*arguments, **named)
            self._wait()
            return answer

        return gated


async def test_a_deleted_shadow_pod_is_given_up_and_its_fence_lowered(node: Node) -> None:
    async with node.agent():
        target, shadow = await mounted(node)
        with fence(node, shadow) as guard:
            guard.tell_deleted()
            state = await seen(node, pb.LOST_PHASE)
            await until(lambda: not guard.stands(), "the fence is lowered")
        await until(lambda: not can_open(target, "vcs1"), "access ends")
        lost = state.shadow_pods[0].lost
        assert lost.reason == "ReservationLost"
        assert lost.message == f"shadow pod {shadow.pod.name} is being deleted"
        assert target.box.inside.process.poll() is None, "who holds nothing lives on"


async def test_a_fence_is_spared_where_memory_is_short(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devicemount_agent.shadow.SPARED", b"0")  # less needs a right of its own
    async with node.agent() as agent:
        _, shadow = await mounted(node)
        with fence(node, shadow) as guard:
            score = Path(f"/proc/{guard.pid}/oom_score_adj")
            score.write_text("500")
            assert await agent.shadow_pods.is_staying(uid(shadow), MountUID(MOUNT_UID))
            assert score.read_text() == "0\n"


async def test_a_fence_that_takes_no_signal_yet_is_lowered_when_it_does(
    node: Node, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with node.agent():
        target, shadow = await mounted(node)
        with fence(node, shadow, gate=gate) as guard:
            assert (await node.remove(target, shadow, policy=pb.LOST)).phase == pb.REMOVED
            gate.write_text("go\n")
            await until(guard.waits, "hold waits")
            guard.tell_deleted()
            await until(lambda: not guard.stands(), "the fence is lowered")


async def test_its_holders_are_asked_to_end_while_the_fence_stands(node: Node) -> None:
    async with node.agent():
        target, shadow = await mounted(node)
        target.box.inside.open("/dev/vcs1")
        with fence(node, shadow) as guard:
            guard.tell_deleted()
            await until(lambda: target.box.inside.process.poll() == -signal.SIGTERM, "it ended")
            await until(lambda: not guard.stands(), "the fence is lowered")


async def test_holders_that_do_not_end_are_killed_before_the_fence_falls(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devicemount_agent.losses.GRACE_S", 2.5)
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        target.box.inside.tell("ignore_term")
        target.box.inside.open("/dev/vcs1")
        with fence(node, shadow) as guard:
            guard.tell_deleted()
            await seen(node, pb.LOST_PHASE)
            await until(lambda: agent.losses.waiting() != (), "holders have time")
            await until(lambda: not can_open(target, "vcs1"), "access goes first")
            await until(lambda: agent.grafts.holders.of(uid(shadow)) != (), "it is named")
            (holder,) = (await seen(node, pb.LOST_PHASE)).shadow_pods[0].holders
            assert holder.container_id == target.box.id
            assert guard.stands()
            await until(lambda: target.box.inside.process.poll() == -signal.SIGKILL, "killed")
            await until(lambda: not guard.stands(), "the fence is lowered")


@pytest.mark.parametrize("how", ["the fence is gone", "a competitor has it"])
async def test_holders_have_no_more_time_than_the_fence_stands(node: Node, how: str) -> None:
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        target.box.inside.tell("ignore_term")
        target.box.inside.open("/dev/vcs1")
        with fence(node, shadow) as guard:
            guard.tell_deleted()
            await until(lambda: agent.losses.waiting() != (), "holders have time")
            if how == "the fence is gone":
                guard.kill()
            else:
                competitor(node, target)
            await until(lambda: target.box.inside.process.poll() == -signal.SIGKILL, "killed")


async def test_without_a_fence_holders_are_killed_at_once(node: Node) -> None:
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        target.box.inside.tell("ignore_term")
        target.box.inside.open("/dev/vcs1")
        with fence(node, shadow) as guard:
            await until(lambda: agent.fences.stands(uid(shadow)), "the fence is seen")
            guard.vanish()
            await until(lambda: target.box.inside.process.poll() == -signal.SIGKILL, "killed")
            state = await seen(node, pb.LOST_PHASE)
        assert state.shadow_pods[0].lost.message == f"shadow pod {shadow.pod.name} has ended"


async def test_a_holder_in_a_sidecar_is_killed_without_a_search_of_the_node(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor can be handed on in the pod; who was allocated the same number lives on."""
    gate = Gate()
    monkeypatch.setattr(end.Ending, "round", gate.in_front_of(end.Ending.round))
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        with closing(os.open("/dev/vcs1", os.O_RDONLY)) as fd:
            handed = node.beside(target, pass_fds=(fd,))
            own = node.beside(target, pass_fds=(fd,), permitted=[("c", 7, 1)])
        try:
            competitor(node, target)
            await until(lambda: handed.process.poll() == -signal.SIGKILL, "killed")
            await until(gate.reached.is_set, "the node is searched")
        finally:
            gate.opened.set()
        await until(lambda: agent.losses.is_settled(uid(shadow)), "it is settled")
        assert own.process.poll() is None
        assert target.box.inside.process.poll() is None, "it held nothing"


async def test_a_shadow_pod_that_fails_before_it_runs_is_lost(node: Node) -> None:
    async with node.agent():
        target, shadow = await mounted(node)
        node.kubelet.forget(shadow.pod)
        await seen(node, pb.LOST_PHASE)
        await until(lambda: not can_open(target, "vcs1"), "access ends")


async def test_a_hold_that_runs_again_in_its_pod_is_no_loss(node: Node) -> None:
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        for _ in range(3):
            with fence(node, shadow) as guard:
                await until(lambda: agent.fences.stands(uid(shadow)), "the fence is seen")
                guard.kill()
                await until(lambda: not agent.fences.stands(uid(shadow)), "its end is seen")
        with fence(node, shadow):
            await until(lambda: agent.fences.stands(uid(shadow)), "it stands again")
            assert [state.phase for state in await node.states()] == [pb.GRANTED]
            assert can_open(target, "vcs1")


async def test_a_kubelet_that_knows_no_pods_yet_is_no_proof(node: Node) -> None:
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        with fence(node, shadow) as guard:
            await until(lambda: agent.fences.stands(uid(shadow)), "the fence is seen")
            shown, node.kubelet.shown = node.kubelet.shown, {}
            asked = node.kubelet.lists
            node.runtime.sandboxes.remove(shadow.pod)
            guard.kill()
            await until(lambda: node.kubelet.lists > asked + 2, "the kubelet was asked")
            assert can_open(target, "vcs1")
            node.kubelet.shown = shown
            node.kubelet.forget(shadow.pod)
            await seen(node, pb.LOST_PHASE)


async def test_a_pod_that_is_no_shadow_pod_of_the_mount_after_all_is_revoked(node: Node) -> None:
    async with node.agent():
        target, shadow = await mounted(node)
        with fence(node, shadow):
            shadow.pod.labels["devicemount.io/shadow"] = "another"
            await seen(node, pb.LOST_PHASE)
        await until(lambda: not can_open(target, "vcs1"), "access ends")


async def test_what_never_stood_guard_is_not_granted_before_it_does(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by another agent: the journal remembers."""
    monkeypatch.setattr("devicemount_agent.watchers.fence.DOWN_LIMIT_S", 0.4)
    async with node.agent():
        target, shadow = await mounted(node)
        lost = (await seen(node, pb.LOST_PHASE)).shadow_pods[0].lost
        assert lost.reason == "ShadowNotRunning"
        assert shadow.pod.name in lost.message
        await until(lambda: not can_open(target, "vcs1"), "access ends")
        assert (await node.remove(target, shadow, policy=pb.LOST)).phase == pb.REMOVED
    node.kubelet.forget(shadow.pod)
    again = node.reserved(target, "vcs1", ordinal=1)
    async with node.agent():
        assert (await node.apply(target, again, timeout_s=0.9)).phase == pb.WAITING
        assert not can_open(target, "vcs1")
        with fence(node, again):
            assert (await node.apply(target, again)).phase == pb.GRANTED
            assert (await node.remove(target)).phase == pb.REMOVED
        node.kubelet.forget(again.pod)
        third = node.reserved(target, "vcs1", ordinal=2)
        assert (await node.apply(target, third)).phase == pb.GRANTED, "it did stand guard"


async def test_a_fence_that_is_down_for_too_long_is_a_loss(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devicemount_agent.watchers.fence.DOWN_LIMIT_S", 0.8)
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        with fence(node, shadow) as guard:
            await until(lambda: agent.fences.stands(uid(shadow)), "the fence is seen")
            guard.kill()
            assert (await seen(node, pb.LOST_PHASE)).shadow_pods[0].lost.reason == (
                "ShadowNotRunning"
            )
        await until(lambda: not can_open(target, "vcs1"), "access ends")


@pytest.mark.parametrize("when", ["verified", "confirmed"])
async def test_a_loss_in_the_middle_of_a_grant_is_called_by_its_name(
    node: Node, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A device filter that denies would be for good."""
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent() as agent:
        place, confirm = agent.grafts._permit_and_place, agent.mounts.confirm

        async def lose() -> None:
            agent.losses.begin(uid(shadow), reservation_lost("it went"))
            await until(lambda: agent.losses.is_revoked(uid(shadow)), "access ends")

        async def placed(container: Container, grant: Grant) -> frozenset[str]:
            made = await place(container, grant)
            await lose()
            return made

        async def confirmed(grant: Grant) -> None:
            await confirm(grant)
            await lose()

        if when == "verified":
            monkeypatch.setattr(agent.grafts, "_permit_and_place", placed)
        else:
            monkeypatch.setattr(agent.mounts, "confirm", confirmed)
        refused = await refusal(node.apply(target, shadow))
        assert refused == ("ReservationLost", grpc.StatusCode.ABORTED)
        assert not agent.journal.ledger.grants


async def test_by_a_lost_shadow_pod_nothing_is_granted_again(node: Node) -> None:
    async with node.agent():
        target, shadow = await mounted(node)
        with fence(node, shadow) as guard:
            guard.tell_deleted()
            await seen(node, pb.LOST_PHASE)
            assert (await refused(node, target, shadow))[0] == "ReservationLost"
            assert (await node.remove(target, shadow, policy=pb.LOST)).phase == pb.REMOVED
    async with node.agent():
        assert (await refused(node, target, shadow))[0] == "ReservationLost"
        assert not can_open(target, "vcs1")


async def test_another_agent_goes_on_with_a_loss(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devicemount_agent.losses.GRACE_S", 5.0)
    with ExitStack() as stack:
        async with node.agent() as agent:
            target, shadow = await mounted(node)
            target.box.inside.tell("ignore_term")
            target.box.inside.open("/dev/vcs1")
            guard = stack.enter_context(fence(node, shadow))
            guard.tell_deleted()
            await seen(node, pb.LOST_PHASE)
            await until(lambda: agent.losses.waiting() != (), "holders have time")
        assert guard.stands()
        assert target.box.inside.process.poll() is None
        async with node.agent():
            await until(lambda: target.box.inside.process.poll() == -signal.SIGKILL, "killed")
            await until(lambda: not guard.stands(), "the fence is lowered")


async def test_a_loss_waits_for_no_other_mount_of_the_pod(node: Node) -> None:
    """Nor keeps it waiting while holders have time."""
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        target.box.inside.tell("ignore_term")
        target.box.inside.open("/dev/vcs1")
        with fence(node, shadow) as guard:
            guard.tell_deleted()
            await until(lambda: agent.losses.waiting() != (), "holders have time")
            other = Target(target.pod, target.box, "22222222-aaaa-4aaa-8aaa-222222222222")
            assert (await node.apply(other, node.reserved(other, "vcsa1"))).phase == pb.GRANTED
            assert (await node.remove(other)).phase == pb.REMOVED
            guard.kill()
            await until(lambda: target.box.inside.process.poll() == -signal.SIGKILL, "killed")


@pytest.mark.parametrize("policy", [pb.WAIT, pb.TERMINATE], ids=["wait", "terminate"])
async def test_a_loss_does_not_wait_for_a_removal_in_the_same_pod(
    node: Node, monkeypatch: pytest.MonkeyPatch, policy: "pb.Policy.ValueType"
) -> None:
    """Which searches the node, or waits for a process that does not end."""
    gate = Gate()
    async with node.agent():
        target, _ = await mounted(node)
        other = Target(target.pod, target.box, "22222222-aaaa-4aaa-8aaa-222222222222")
        assert (await node.apply(other, node.reserved(other, "vcsa1"))).phase == pb.GRANTED
        target.box.inside.tell("ignore_term")
        target.box.inside.open("/dev/vcsa1")
        monkeypatch.setattr(withdrawal, "search", gate.behind(search.search))
        monkeypatch.setattr(end, "_wait", gate.behind(end._wait))
        removing = asyncio.create_task(
            node.remove(other, policy=policy, grace_s=60, include_main=True)
        )
        try:
            await until(gate.reached.is_set, "the removal is under way")
            competitor(node, target)
            await until(lambda: not can_open(target, "vcs1"), "access ends")
            assert not removing.done()
        finally:
            gate.opened.set()
        assert (await removing).phase == pb.BUSY
        await until(lambda: not can_open(target, "vcs1"), "nor does it come back")


async def test_what_is_lost_during_its_removal_is_not_given_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To somebody who slipped in, as it else would be: a competitor has the device."""
    look, gate = search.search, Gate()
    children: list[int | None] = []

    def slipped_in(question: search.Question) -> withdrawal.Sightings:
        seen = look(question)
        fd = target.box.inside.open("/dev/vcs1")
        children.append(target.box.inside.tell("fork_child"))
        target.box.inside.close(fd)
        return seen

    async with node.agent() as agent:
        target, shadow = await mounted(node)
        monkeypatch.setattr(withdrawal, "search", slipped_in)
        monkeypatch.setattr(withdrawal, "sightings", gate.behind(search.sightings))
        removing = asyncio.create_task(node.remove(target))
        try:
            await until(gate.reached.is_set, "it was seen")
            competitor(node, target)
            (child,) = children
            await until(lambda: not Path(f"/proc/{child}/fd/0").exists(), "it was killed")
        finally:
            gate.opened.set()
        await removing
        assert not can_open(target, "vcs1")
        assert uid(shadow) not in agent.grafts.live
        await until(lambda: agent.losses.is_settled(uid(shadow)), "it is settled")
        assert not can_open(target, "vcs1")
        assert (await node.remove(target, shadow, policy=pb.LOST)).phase == pb.REMOVED
