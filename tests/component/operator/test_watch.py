# SPDX-License-Identifier: Apache-2.0
"""What agents tell by themselves: heard at once, also when their stream was cut, mute or never
was."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from component.operator.scene import Scene
from devicemount_agent_api import tls
from devicemount_agent_api.v1 import agent_pb2, agent_pb2_grpc

RARELY_S = 60.0  # a List that is not asked for by a bell does not come within a test


async def mounted(scene: Scene) -> None:
    """Mount, and wait until the operator listens to the agent of the node."""
    await scene.running_pod()
    await scene.mount()
    await scene.becomes("Mounted")
    await scene.eventually(listens(scene))


def listens(scene: Scene, *, watches: int = 1) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        return bool(scene.agent.listeners) and scene.agent.watches >= watches

    return is_so


async def concern(scene: Scene) -> str:
    status = ((await scene.get_mount()) or {}).get("status") or {}
    conditions = status.get("conditions") or ()
    return next((c["reason"] for c in conditions if c["type"] == "Degraded"), "")


async def hears(scene: Scene, reason: str, *, within_s: float) -> float:
    """Let the agent say something of its own accord; return how long it takes to be in status."""
    started = time.monotonic()
    scene.agent.worry(agent_pb2.Concern(reason=reason, message="said by itself"))

    async def is_heard() -> bool:
        return await concern(scene) == reason

    await scene.eventually(is_heard, within_s=within_s)
    return time.monotonic() - started


async def test_what_changes_is_heard_at_once_and_nothing_is_polled(scene: Scene) -> None:
    async with scene.operator(agent_check_s=RARELY_S):
        await mounted(scene)
        took = [await hears(scene, f"Reason{n}", within_s=5) for n in range(5)]
        assert sorted(took)[2] < 0.5, took  # without load some 60 ms
        lists = scene.agent.lists
        changes = 50
        for n in range(changes):
            scene.agent.worry(agent_pb2.Concern(reason="Storm", message=str(n)))
        await hears(scene, "Calm", within_s=5)
        assert scene.agent.lists - lists <= 10  # for 51 messages, told in a burst


async def test_a_holder_that_ends_lets_an_unmount_go_on_at_once(scene: Scene) -> None:
    async with scene.operator(agent_check_s=RARELY_S):
        await mounted(scene)
        scene.agent.holders = [agent_pb2.Holder(pid=7, command="train", blocking=True)]
        await scene.unmount()
        await scene.becomes("DeviceBusy")

        async def pauses_long() -> bool:
            return len(scene.agent.removes) >= 4

        await scene.eventually(pauses_long)  # the next is asked for in four seconds
        scene.agent.holders = []
        started = time.monotonic()
        scene.agent.say_of_all(agent_pb2.GRANTED)
        await scene.gone(scene.mount_path("dm"))
        assert time.monotonic() - started < 1.5


async def test_a_stream_that_is_cut_is_followed_by_a_list_and_by_another(scene: Scene) -> None:
    async with scene.operator(agent_check_s=RARELY_S):
        await mounted(scene)
        scene.agent.is_mute = True
        scene.agent.worry(agent_pb2.Concern(reason="Unheard", message="nobody was told"))
        scene.agent.cut()

        async def is_heard() -> bool:
            return await concern(scene) == "Unheard"

        await scene.eventually(is_heard, within_s=2)
        scene.agent.is_mute = False
        await scene.eventually(listens(scene, watches=2))
        await hears(scene, "Heard", within_s=2)


async def test_a_stream_that_tells_too_little_is_checked_now_and_then(scene: Scene) -> None:
    async with scene.operator(agent_check_s=1.0):
        await mounted(scene)
        scene.agent.is_mute = True
        await hears(scene, "Unheard", within_s=5)


async def test_an_agent_that_does_not_stream_is_polled(scene: Scene) -> None:
    scene.agent.streams = False
    async with scene.operator(agent_check_s=RARELY_S):
        await scene.running_pod()
        await scene.mount()
        await scene.becomes("Mounted")
        await hears(scene, "Polled", within_s=5)
        await scene.eventually(scene.agent.listed(times=3))


class Proxy:
    """Between operator and agent; when it is frozen nothing passes, and nobody is told."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.thawed = asyncio.Event()
        self.thawed.set()
        self._agent_port = port
        self._pipes: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self._agent_port)
        for source, sink in ((reader, forth), (back, writer)):
            pipe = asyncio.create_task(self._pipe(source, sink))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self.thawed.wait()
                sink.write(data)
        except ConnectionError:
            pass  # of one side: the other is told by the end
        finally:
            sink.close()

    async def close(self) -> None:
        for pipe in tuple(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)


@asynccontextmanager
async def proxied(port: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()


async def test_a_stream_that_is_dead_without_saying_so_is_found_out(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "KEEPALIVE_MS", 500)
    monkeypatch.setattr(tls, "KEEPALIVE_ANSWER_MS", 500)
    async with (
        proxied(scene.agent.port) as proxy,
        scene.operator(agent_check_s=RARELY_S, agent_port=proxy.port),
    ):
        await mounted(scene)
        await hears(scene, "Before", within_s=5)
        watches = scene.agent.watches
        proxy.thawed.clear()

        async def is_known_dead() -> bool:
            return any("a stream was cut" in record.getMessage() for record in caplog.records)

        await scene.eventually(is_known_dead, within_s=10)
        proxy.thawed.set()
        await scene.eventually(listens(scene, watches=watches + 1))
        await hears(scene, "Heard", within_s=5)


async def test_an_agent_whose_answers_cannot_be_read_is_one_that_does_not_answer(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    is_garbled = False

    def garbled(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        return lambda message: parse(b"\xff" if is_garbled else message)

    class Channel:
        """Reads what agents say, or cannot."""

        def __init__(self, channel: Any) -> None:
            self._channel = channel

        def unary_unary(self, method: str, *, response_deserializer: Any, **other: Any) -> Any:
            read = garbled(response_deserializer)
            return self._channel.unary_unary(method, response_deserializer=read, **other)

        def unary_stream(self, method: str, *, response_deserializer: Any, **other: Any) -> Any:
            read = garbled(response_deserializer)
            return self._channel.unary_stream(method, response_deserializer=read, **other)

    monkeypatch.setattr(logging.getLogger("grpc._common"), "disabled", True)  # it is meant
    stub = agent_pb2_grpc.AgentStub
    monkeypatch.setattr(agent_pb2_grpc, "AgentStub", lambda channel: stub(Channel(channel)))  # type: ignore[arg-type]
    async with scene.operator(agent_check_s=RARELY_S):
        await mounted(scene)
        await hears(scene, "Before", within_s=5)
        is_garbled = True
        scene.agent.worry(agent_pb2.Concern(reason="Garbled", message="nobody can read it"))

        async def is_told() -> bool:
            said = [record.getMessage() for record in caplog.records]
            return sum("cannot be read" in text for text in said) >= 2  # by stream and by List

        await scene.eventually(is_told, within_s=5)
        is_garbled = False
        await hears(scene, "Heard", within_s=5)


async def test_what_a_node_is_is_logged_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "an agent is there" in r.getMessage()]

    scene.agent.node = agent_pb2.NodeState(
        cgroup_mode="v2", kernel="6.1", runtime="containerd 2", boot_id="b", version="0.0.1"
    )
    async with scene.operator():
        await mounted(scene)
        scene.agent.cut()
        await scene.eventually(listens(scene, watches=2))
    (line,) = said()
    assert "node=node1 cgroup_mode=v2 kernel=6.1 runtime='containerd 2' version=0.0.1" in line
    assert any("versions differ" in record.getMessage() for record in caplog.records)


# What happened and is over


def counted(**counts: Any) -> Callable[[agent_pb2.MountState], None]:
    def change(state: agent_pb2.MountState) -> None:
        for shadow in state.shadow_pods:
            for name, value in counts.items():
                setattr(shadow, name, value)

    return change


async def test_repairs_are_one_event_and_no_write_of_status(scene: Scene) -> None:
    async with scene.operator(agent_check_s=RARELY_S):
        await mounted(scene)
        with scene.counted() as writes:
            for repairs in range(1, 11):
                is_heard = scene.agent.listed(times=1)
                scene.agent.change(counted(repairs=repairs))
                await scene.eventually(is_heard)
            await scene.eventually(lambda: scene.events("AccessRepaired"))
        assert writes == ["create events"]
        (event,) = await scene.events("AccessRepaired")
        assert "loop0 was taken from container main by somebody on the node" in event["message"]
        assert event["type"] == "Warning"


async def test_a_restarted_container_is_ready_again_by_its_agent_alone(scene: Scene) -> None:
    async with scene.operator(agent_check_s=RARELY_S):
        await mounted(scene)
        applied = len(scene.agent.applies)
        scene.agent.say_of_all(agent_pb2.TARGET_ENDED)
        await scene.becomes("Grafting")

        def run_again(state: agent_pb2.MountState) -> None:
            state.container_id = "b" * 64
            counted(restarts=1)(state)

        scene.agent.change(run_again)
        scene.agent.say_of_all(agent_pb2.GRANTED)
        mount = await scene.becomes("Mounted")
        assert mount["status"]["targets"][0]["containerID"] == "b" * 64
        (event,) = await scene.eventually(lambda: scene.events("MountedAgain"))
        assert "container main was restarted" in event["message"]
        assert len(await scene.events("Mounted")) == 1
    assert len(scene.agent.applies) == applied


async def test_a_loss_that_the_agent_noticed_is_told_once_in_its_words(scene: Scene) -> None:
    async with scene.operator(agent_check_s=RARELY_S):
        await mounted(scene)
        shadow = await scene.shadow()

        def lose(state: agent_pb2.MountState) -> None:
            state.phase, state.granted_unix_ns = agent_pb2.LOST_PHASE, 0
            for pod in state.shadow_pods:
                pod.phase = agent_pb2.LOST_PHASE
                pod.lost.reason, pod.lost.message = "ShadowNotRunning", "it was killed: OOM"

        scene.agent.change(lose)
        mount = await scene.becomes("ShadowNotRunning", within_s=2)
        assert "it was killed: OOM" in str(mount["status"]["conditions"])
        applied = len(scene.agent.applies)

        async def another() -> Any:
            return [p for p in await scene.shadows() if p["metadata"]["uid"] != _uid(shadow)]

        (made,) = await scene.eventually(another)
        assert len(scene.agent.applies) == applied  # nothing is granted before it runs
        await scene.schedule(made)
        await scene.becomes("Mounted")
        assert len(await scene.events("ShadowNotRunning")) == 1


def _uid(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["uid"])
