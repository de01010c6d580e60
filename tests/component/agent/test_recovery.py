# SPDX-License-Identifier: Apache-2.0
"""What a restarted agent makes of its journal: everything ends mounted or clean, and nothing in use
is cut.
"""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import fields

import grpc
import pytest

from devicemount_agent_api.failpoints import EXIT_STATUS, Failpoint
from devicemount_agent_api.tls import agent_channel
from devicemount_agent_api.v1 import agent_pb2 as pb
from devicemount_agent_api.v1 import agent_pb2_grpc

from .conftest import DEADLINE_S, Node, Target
from .test_loss import competitor
from .test_mount import can_open, seen, until

POINTS = [Failpoint.AGENT_AFTER_INTENT, Failpoint.AGENT_AFTER_GRANT]  # all: test_failpoints.py

PROGRAM = """
import sys
from pathlib import Path
from devicemount_agent.graft import shape
from devicemount_agent.__main__ import main
shape.NODE_PROCESS = Path("/proc/self")
sys.exit(main())
"""


@asynccontextmanager
async def killed_at(node: Node, point: Failpoint) -> "AsyncIterator[agent_pb2_grpc.AgentAsyncStub]":
    """Run an agent in a process of its own that ends at that point; wait until it has."""
    environment = os.environ | {
        "DM_FAILPOINT": point.value,
        "DM_FAILPOINT_DIR": str(node.directory),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for field in fields(node.settings):
        environment[f"DM_{field.name.upper()}"] = str(getattr(node.settings, field.name))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, env=environment)
    channel = agent_channel(node.settings.listen, node.identity_of("devicemount-operator"))
    try:
        async with asyncio.timeout(2 * DEADLINE_S):
            await channel.channel_ready()
            yield agent_pb2_grpc.AgentStub(channel)  # type: ignore[misc]
            assert await process.wait() == EXIT_STATUS
    finally:
        await channel.close(None)
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.value)
async def test_an_agent_that_was_killed_goes_forward(node: Node, point: Failpoint) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with killed_at(node, point) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Apply(node.apply_request(target, shadow), timeout=DEADLINE_S)
    was_granted = point is not Failpoint.AGENT_AFTER_INTENT
    assert can_open(target, "vcs1") == was_granted
    fd = target.box.inside.open("/dev/vcs1") if was_granted else None

    async with node.agent():
        assert [state.phase for state in await node.states()] == [pb.GRANTED]
        assert can_open(target, "vcs1")
        if fd is not None:
            assert (await node.remove(target)).phase == pb.BUSY
            target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED
        assert not (target.box.root / "dev/vcs1").exists()


async def test_an_intent_whose_reservation_went_is_a_loss(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with killed_at(node, Failpoint.AGENT_AFTER_GRANT) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Apply(node.apply_request(target, shadow), timeout=DEADLINE_S)
    target.box.inside.open("/dev/vcs1")
    node.kubelet.forget(shadow.pod)

    async with node.agent():
        assert await node.states() == []
        await until(lambda: target.box.inside.process.poll() == -9, "killed")


async def test_a_restart_changes_nothing_for_who_uses_the_device(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent():
        before = await node.apply(target, shadow)
    fd = target.box.inside.open("/dev/vcs1")

    async with node.agent():
        (state,) = await node.states()
        assert (state.phase, state.granted_unix_ns) == (pb.GRANTED, before.granted_unix_ns)
        assert (await node.remove(target)).phase == pb.BUSY
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED


async def test_a_wiped_filter_is_granted_again_at_the_start(node: Node) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
    (target.box.cgroup.path / "devices.deny").write_text("c 7:1 rw")
    async with node.agent():
        assert can_open(target, "vcs1")


@contextmanager
def watched(target: Target) -> Iterator[list[str]]:
    """Open the device over and over; tell each time that it could be."""
    opened: list[str] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            if can_open(target, "vcs1"):
                opened.append("opened")

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield opened
    finally:
        is_over.set()
        looker.join()


async def test_a_device_that_is_anothers_by_now_is_not_granted_again(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent():
        await node.apply(target, shadow)
    (target.box.cgroup.path / "devices.deny").write_text("c 7:1 rw")
    node.kubelet.forget(shadow.pod)
    competitor(node, target)
    with watched(target) as opened:
        async with node.agent():
            await seen(node, pb.LOST_PHASE)
    assert not opened


async def test_a_kubelet_that_has_just_begun_is_no_loss(node: Node) -> None:
    target = node.target()
    competitor(node, target)
    node.kubelet.shown.clear()  # that pod is gone: the kubelet's file names it still
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
    (target.box.cgroup.path / "devices.deny").write_text("c 7:1 rw")
    node.kubelet.shown.clear()
    async with node.agent():
        assert [state.phase for state in await node.states()] == [pb.GRANTED]
        assert can_open(target, "vcs1")


async def test_a_removed_mount_stays_removed(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent():
        request = node.apply_request(target, shadow)
        await node.stub.Apply(request, timeout=DEADLINE_S)
        await node.remove(target)
    async with node.agent():
        assert await node.states() == []
        assert not can_open(target, "vcs1")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.stub.Apply(request, timeout=DEADLINE_S)
        assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_a_target_that_ended_meanwhile_is_told(node: Node) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
    node.runtime.containers[target.box.id].is_running = False
    async with node.agent():
        assert [state.phase for state in await node.states()] == [pb.TARGET_ENDED]
        assert (await node.remove(target)).phase == pb.REMOVED
    assert not can_open(target, "vcs1"), "a process of it that lives on has lost the device too"


async def ready(node: Node) -> int:
    """Ask the readiness probe."""
    return (await readiness(node))[0]


async def readiness(node: Node) -> tuple[int, str]:
    """Ask the readiness probe, also for its reason."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.settings.health_port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: agent\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]


async def test_it_is_ready_while_kubelet_and_runtime_answer(node: Node) -> None:
    async with node.agent():
        assert await ready(node) == 200
        node.kubelet.refusals = [(grpc.StatusCode.UNAVAILABLE, "kubelet restarts")]
        assert await ready(node) == 503
        assert await ready(node) == 200
