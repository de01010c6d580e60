# SPDX-License-Identifier: Apache-2.0
"""Who watches is told what is so, and again when it is different; nobody has to ask."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from devicemount_agent.journal import boot_id
from devicemount_agent_api.v1 import agent_pb2 as pb
from devicemount_agent_api.version import VERSION

from .conftest import DEADLINE_S, RESOURCE, Node
from .test_health import Card, card, reserved

__all__ = ["card"]

AT_ONCE_S = 2.0  # every five seconds all is looked at


class Stream:
    """One `Watch`, read a message at a time."""

    def __init__(self, call: "grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchResponse]") -> None:
        self._call = call

    async def next(self) -> pb.WatchResponse:
        async with asyncio.timeout(DEADLINE_S):
            message = await self._call.read()
        assert isinstance(message, pb.WatchResponse), "the stream has ended"
        return message

    async def until(self, phase: "pb.Phase.ValueType") -> pb.MountState:
        """Read on until a mount is in that phase."""
        while (state := (await self.next()).mount).phase != phase:
            pass
        return state

    async def all(self) -> list[pb.MountState]:
        """Read what is told before the mark."""
        told = []
        while (message := await self.next()).HasField("mount"):
            told.append(message.mount)
        return told


@asynccontextmanager
async def watching(node: Node) -> AsyncIterator[Stream]:
    call = node.stub.Watch(pb.WatchRequest())
    try:
        yield Stream(call)
    finally:
        call.cancel()


async def test_what_is_so_comes_first_and_then_what_changes(node: Node) -> None:
    earlier, later = node.target("earlier-0"), node.target("later-0")
    async with node.agent():
        granted = await node.apply(earlier, node.reserved(earlier, "vcs1"))
        async with watching(node) as stream:
            assert await stream.all() == [granted]
            await node.apply(later, node.reserved(later, "vcsa1"))
            state = await stream.until(pb.GRANTED)
            assert state.key == later.key
            assert state.shadow_pods[0].devices[0].id == "vcsa1"
            await node.remove(later)
            state = await stream.until(pb.REMOVED)
            assert (state.key, list(state.shadow_pods)) == (later.key, [])


async def test_what_is_told_last_is_what_the_request_was_answered(node: Node) -> None:
    """Or an operator would ask about its own requests."""
    target = node.target()
    shadows = [node.reserved(target, "vcs1"), node.reserved(target, "vcsa1", ordinal=1)]
    async with node.agent(), watching(node) as stream:
        await stream.all()
        answer = await node.apply(target, *shadows)
        assert not answer.incomplete
        async with asyncio.timeout(AT_ONCE_S):
            while (await stream.next()).mount != answer:
                pass


async def test_an_end_a_holder_and_a_loss_are_told(node: Node) -> None:
    ending, busy, losing = (node.target(f"{name}-0") for name in ("ending", "busy", "losing"))
    lost = node.reserved(losing, "vcsu1")
    async with node.agent():
        await node.apply(ending, node.reserved(ending, "vcs1"))
        await node.apply(busy, node.reserved(busy, "vcsa1"))
        await node.apply(losing, lost)
        held = busy.box.inside.open("/dev/vcsa1")
        async with watching(node) as stream:
            await stream.all()
            node.runtime.containers[ending.box.id].is_running = False
            ending.box.inside.process.kill()
            assert (await stream.until(pb.TARGET_ENDED)).key == ending.key
            await node.remove(busy)
            state = await stream.until(pb.BUSY)
            assert state.shadow_pods[0].holders[0].pid == busy.box.inside.pid
            node.kubelet.forget(lost.pod)
            node.kubelet.choose(node.shadow(losing, 9).pod, RESOURCE, {"vcsu1": []})
            assert (await stream.until(pb.LOST_PHASE)).key == losing.key
        busy.box.inside.close(held)


async def test_a_device_that_turns_unhealthy_is_told(node: Node, card: Card) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, reserved(node, target, card))
        async with watching(node) as stream:
            await stream.all()
            node.kubelet.healthy(RESOURCE, "card-2")
            while not (state := (await stream.next()).mount).shadow_pods[0].concerns:
                pass
            assert state.shadow_pods[0].concerns[0].reason == "DeviceUnhealthy"


async def test_an_agent_that_ends_does_not_wait_for_who_watches(node: Node) -> None:
    loop = asyncio.get_running_loop()
    async with node.agent():
        call = node.stub.Watch(pb.WatchRequest())
        await Stream(call).all()
        waiting = asyncio.create_task(call.read())
        begun_s = loop.time()
    assert loop.time() - begun_s < 1.0
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        assert await waiting is not grpc.aio.EOF
        await call.read()


async def test_a_node_says_what_it_is(node: Node) -> None:
    async with node.agent():
        state = await node.stub.Node(pb.NodeRequest(), timeout=DEADLINE_S)
    assert state.cgroup_mode in {"v1", "v2", "hybrid"}
    assert state.kernel == os.uname().release
    assert state.runtime == "fake 0.1.0"
    assert (state.boot_id, state.version) == (boot_id(), VERSION)
