# SPDX-License-Identifier: Apache-2.0
"""A container that runs again is granted its device again by the agent alone."""

import asyncio
import errno
import time

import pytest

from devicemount_agent.graft import graft
from devicemount_agent.kernel import inotify
from devicemount_agent.model import DeviceNumber, PodUID
from devicemount_agent_api.v1 import agent_pb2 as pb

from .conftest import DEADLINE_S, Node, Shadow, Target
from .test_mount import can_open, refused, seen, until


async def regrafted(node: Node, target: Target, restarts: int = 1) -> pb.ShadowState:
    """Wait until the mount is granted in this run of the container."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            (state,) = await node.states()
            if state.phase == pb.GRANTED and state.container_id == target.box.id:
                assert state.shadow_pods[0].restarts == restarts
                return state.shadow_pods[0]
            await asyncio.sleep(0.005)


async def mounted(node: Node) -> tuple[Target, Shadow]:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    assert (await node.apply(target, shadow)).phase == pb.GRANTED
    return target, shadow


async def test_many_times_within_a_moment_with_the_same_device(node: Node) -> None:
    took_s = []
    async with node.agent():
        target, shadow = await mounted(node)
        for count in range(1, 11):
            target, began = node.restarted(target), time.monotonic()
            state = await regrafted(node, target, restarts=count)
            took_s.append(time.monotonic() - began)
            assert can_open(target, "vcs1")
            assert state.uid == shadow.pod.uid
            assert [device.id for device in state.devices] == ["vcs1"]
        removed = await node.remove(target)
        assert removed.phase == pb.REMOVED, removed
        assert not can_open(target, "vcs1")
    assert max(took_s) < 1.0, took_s


async def test_nothing_is_left_in_the_cgroup_of_the_container_that_ended(node: Node) -> None:
    async with node.agent():
        former, _ = await mounted(node)
        before = graft.allowed(former.box)
        target = node.restarted(former)
        await regrafted(node, target)
        assert graft.allowed(target.box) == before
        assert graft.allowed(former.box) == before - {DeviceNumber("c", 7, 1)}


async def test_one_that_the_runtime_calls_running_later_than_its_cgroup_is_there(
    node: Node,
) -> None:
    async with node.agent():
        target, _ = await mounted(node)
        target = node.restarted(target)
        created = node.runtime.containers[target.box.id]
        created.is_running = False
        asked = node.runtime.lists
        await until(lambda: node.runtime.lists > asked + 3, "the runtime was asked a few times")
        assert not can_open(target, "vcs1")
        created.is_running = True
        await regrafted(node, target)
        assert can_open(target, "vcs1")


async def test_a_container_that_ended_for_good_stays_so(node: Node) -> None:
    async with node.agent():
        target, _ = await mounted(node)
        node.runtime.containers[target.box.id].is_running = False
        target.box.inside.process.kill()
        await seen(node, pb.TARGET_ENDED)
        assert (await node.remove(target)).phase == pb.REMOVED


@pytest.mark.parametrize("when", ["while it was away", "when it came back"])
async def test_an_agent_that_was_away_finds_it(node: Node, when: str) -> None:
    async with node.agent():
        target, _ = await mounted(node)
    if when == "while it was away":
        target = node.restarted(target)
    else:
        node.runtime.containers[target.box.id].is_running = False
        target.box.inside.process.kill()
    async with node.agent():
        if when == "when it came back":
            await seen(node, pb.TARGET_ENDED)
            target = node.restarted(target)
        await regrafted(node, target)
        assert can_open(target, "vcs1")


async def test_an_apply_at_the_same_time_changes_nothing(node: Node) -> None:
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        for _ in range(5):
            target = node.restarted(target)
            assert (await node.apply(target, shadow)).phase == pb.GRANTED
            assert can_open(target, "vcs1")
        (grant,) = agent.grafts.ledger.grants.values()
        assert grant.container_id == target.box.id
        assert (await node.remove(target)).phase == pb.REMOVED
        assert not can_open(target, "vcs1")
        assert not (target.box.root / "dev/vcs1").exists()


async def test_an_apply_waits_for_who_is_at_it_already(node: Node) -> None:
    async with node.agent():
        target, shadow = await mounted(node)
        passing, held = asyncio.Event(), asyncio.Event()
        passing.set()
        node.kubelet.on_list = [passing, held]  # reserved; then the confirmation
        target = node.restarted(target)
        await until(lambda: can_open(target, "vcs1"), "it is being granted again")
        applying = asyncio.create_task(node.apply(target, shadow))
        held.set()
        assert (await applying).phase == pb.GRANTED
        await regrafted(node, target)


async def test_what_stands_in_the_way_is_left_and_said_to_who_asks(node: Node) -> None:
    async with node.agent() as agent:
        target, shadow = await mounted(node)
        async with agent.grafts.lock(PodUID(target.pod.uid)):
            target = node.restarted(target)
            (target.box.root / "dev/vcs1").write_text("mine")
        await seen(node, pb.TARGET_ENDED)
        assert (await refused(node, target, shadow))[0] == "PathConflict"
        assert (target.box.root / "dev/vcs1").read_text() == "mine"


async def test_one_that_could_not_be_granted_is_tried_again(node: Node) -> None:
    async with node.agent() as agent:
        target, _ = await mounted(node)
        async with agent.grafts.lock(PodUID(target.pod.uid)):
            target = node.restarted(target)
            (target.box.root / "dev/vcs1").write_text("mine")
        (target.box.root / "dev/vcs1").unlink()
        await regrafted(node, target)
        assert can_open(target, "vcs1")


async def test_nothing_is_granted_that_the_kubelet_does_not_show(node: Node) -> None:
    """It may have just begun: that is no loss either."""
    async with node.agent():
        target, shadow = await mounted(node)
        shown = node.kubelet.shown.pop((shadow.pod.namespace, shadow.pod.name))
        asked = node.kubelet.lists
        target = node.restarted(target)
        await until(lambda: node.kubelet.lists > asked + 1, "the kubelet was asked")
        assert not can_open(target, "vcs1")
        await seen(node, pb.TARGET_ENDED)
        node.kubelet.shown[shadow.pod.namespace, shadow.pod.name] = shown
        await regrafted(node, target)


async def test_several_mounts_come_back_together(node: Node) -> None:
    async with node.agent():
        target, _ = await mounted(node)
        second = Target(target.pod, target.box, "22222222-aaaa-4aaa-8aaa-222222222222")
        await node.apply(second, node.reserved(second, "vcsa1"))
        target = node.restarted(target)
        await until(lambda: can_open(target, "vcs1"), "one opens")
        await until(lambda: can_open(target, "vcsa1"), "the other, too")


async def test_where_inotify_is_used_up_it_is_polled(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used_up() -> int:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(inotify, "inotify_init1", used_up)
    async with node.agent() as agent:
        assert agent.bell.is_polling
        target, _ = await mounted(node)
        target = node.restarted(target)
        await regrafted(node, target)
