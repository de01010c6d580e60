# SPDX-License-Identifier: Apache-2.0
"""An API server that is away, overloaded, silent or forgetful: the same end, without a storm.

Everything goes through the fault proxy; what is asserted in the end is the API server's own view.
"""

import asyncio
import os
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from component.operator.control_plane import free_ports
from component.operator.fault_proxy import FaultProxy
from component.operator.probes import answer_of
from component.operator.scene import Scene
from devicemount_agent_api.v1 import agent_pb2
from devicemount_operator import hearing, reflector, shell
from devicemount_operator.__main__ import run
from devicemount_operator.errors import LeaseLost

PODS, MOUNTS = "/pods", "/devicemounts"
AWAY_S = float(os.environ.get("API_AWAY_S", "2"))  # more than the Lease has left would end it


async def gone(scene: Scene, *names: str) -> None:
    for name in names:
        await scene.unmount(name)
    for name in names:
        await scene.gone(scene.mount_path(name))
    assert await scene.shadows() == []
    assert scene.agent.states == {}


async def test_a_server_that_is_away_for_a_while_is_not_stormed_and_all_goes_on(
    scene: Scene, faults: FaultProxy
) -> None:
    names = [f"dm{n}" for n in range(8)]
    await scene.running_pod()
    async with scene.operator():
        for name in names[:4]:
            await scene.mount(name)
        for name in names[:4]:
            await scene.becomes("Mounted", name)
        faults.stop()
        faults.asked.clear()
        for name in names[4:]:
            await scene.mount(name)
        scene.agent.say_of_all(agent_pb2.TARGET_ENDED)  # four passes cannot read their target
        await asyncio.sleep(AWAY_S)
        tried = len(faults.asked)
        faults.start()
        back = time.monotonic()
        for name in names:
            await scene.becomes("Mounted", name, within_s=10)
        assert time.monotonic() - back < 10
        assert tried < 30 * AWAY_S, faults.asked  # watches, the Lease, and each key by its back-off
        assert len(await scene.shadows()) == len(names)
        await gone(scene, *names)


async def test_one_that_is_away_for_longer_than_the_lease_ends_the_operator_and_the_next_goes_on(
    scene: Scene, faults: FaultProxy
) -> None:
    await scene.running_pod()
    settings = scene.with_lease(duration_s=3.0, renew_deadline_s=1.0, retry_s=0.2)
    task = asyncio.create_task(run(settings, stop=asyncio.Event()))
    await scene.mount()
    await scene.becomes("Mounted")
    faults.stop()
    with pytest.raises(ExceptionGroup) as ended:
        async with asyncio.timeout(10):
            await task
    assert ended.group_contains(LeaseLost)
    faults.start()
    async with scene.operator():
        with scene.counted() as writes:
            await scene.eventually(scene.agent.listed(times=3))
        assert writes == []
        await gone(scene, "dm")


async def test_what_the_server_asks_to_wait_is_waited(scene: Scene, faults: FaultProxy) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.eventually(scene.lease_holder)
        faults.refuse(429, method="POST", path=PODS, times=2, retry_after=1)
        started = time.monotonic()
        await scene.mount()
        await scene.becomes("Mounted")
        assert 2.0 < time.monotonic() - started < 4.0
        assert faults.count("POST", PODS) == 3
        assert len(await scene.shadows()) == 1


async def test_errors_of_every_other_answer_delay_and_change_nothing(
    scene: Scene, faults: FaultProxy
) -> None:
    chance = random.Random(15)  # noqa: S311 (a test's)
    names = [f"dm{n}" for n in range(4)]
    await scene.running_pod()
    async with scene.operator():
        await scene.eventually(scene.lease_holder)
        for method, path in (("GET", PODS), ("POST", PODS), ("PATCH", MOUNTS), ("PUT", MOUNTS)):
            for code in chance.sample((500, 503, 504, 409, 429), k=3):
                faults.refuse(code, method=method, path=path, times=1, retry_after=0)
        for name in names:
            await scene.mount(name)
        for name in names:
            await scene.becomes("Mounted", name)
        assert len(await scene.shadows()) == len(names)
        for code in (500, 409, 429):
            faults.refuse(code, method="DELETE", path=PODS, times=2, retry_after=0)
        await gone(scene, *names)


async def test_events_that_are_lost_repeated_and_late_lead_to_the_same_end(
    scene: Scene, faults: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "RELIST_S", 0.3)
    monkeypatch.setattr(reflector, "STREAM_S", 1)
    chance = random.Random(27)  # noqa: S311 (a test's)
    held_of = defaultdict[str, list[bytes]](list)

    def events(path: str, line: bytes) -> Iterable[bytes]:
        if not path.endswith((PODS, MOUNTS)):
            return [line]
        held = held_of[path]
        held.append(line)
        match chance.randrange(4):
            case 0:
                return []  # late, or never
            case 1:
                held.pop()
                return []
            case 2:
                given = [held.pop(), *reversed(held)]
                held.clear()
                return given
            case _:
                return [held.pop()] * 2

    faults.events = events
    names = [f"dm{n}" for n in range(6)]
    await scene.running_pod()
    async with scene.operator(resync_s=0.3):
        for name in names:
            await scene.mount(name)
        for name in names:
            await scene.becomes("Mounted", name)
        for shadow in (await scene.shadows())[:3]:
            await scene.delete(scene.pod_path(shadow["metadata"]["name"]), grace_s=0)

        async def all_have_one() -> bool:
            return len(await scene.shadows()) == len(names)

        await scene.eventually(all_have_one)
        for name in names:
            await scene.becomes("Mounted", name)
        await gone(scene, *names)


async def test_a_version_that_is_too_old_is_listed_anew(scene: Scene, faults: FaultProxy) -> None:
    too_old = (
        b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","code":410,'
        b'"reason":"Expired","message":"too old resource version"}}\n'
    )
    await scene.running_pod()
    async with scene.operator():
        await scene.mount("first")
        await scene.becomes("Mounted", "first")
        faults.events = lambda path, line: [too_old] if path.endswith((PODS, MOUNTS)) else [line]
        await scene.mount("second")
        listed = faults.count("GET", "/api/v1/pods")
        shadow = await scene.shadow()
        await scene.delete(scene.pod_path(shadow["metadata"]["name"]), grace_s=0)

        async def lists_again() -> bool:
            return faults.count("GET", "/api/v1/pods") > listed

        await scene.eventually(lists_again)
        faults.events = None
        for name in ("first", "second"):
            await scene.becomes("Mounted", name)
        await gone(scene, "first", "second")


async def test_watches_that_fall_silent_are_opened_again(
    scene: Scene, faults: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector.Reflector.__init__, "__kwdefaults__", {"silence_s": 1.0})
    monkeypatch.setattr(shell, "SILENCE_S", 1.0)
    await scene.running_pod()
    async with scene.operator():
        await scene.mount("first")
        await scene.becomes("Mounted", "first")
        faults.silence()
        await scene.mount("second")
        await scene.becomes("Mounted", "second", within_s=5)
        await gone(scene, "first", "second")


async def test_a_watch_that_stays_deaf_fails_the_liveness_probe(
    scene: Scene, faults: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "PATIENCE_S", 0.5)
    (port,) = free_ports(1)
    await scene.running_pod()
    async with scene.operator(resync_s=0.2, health_port=port):
        await scene.mount("first")
        await scene.becomes("Mounted", "first")
        faults.events = lambda path, line: [] if path.endswith(MOUNTS) else [line]
        await scene.mount("second")
        await scene.becomes("Mounted", "second")  # by the resync

        async def says_so() -> bool:
            said = await answer_of(port, "/healthz")
            return said.status == 503 and "the watch of DeviceMounts" in said.text

        await scene.eventually(says_so)
        faults.events = None
        body = {"metadata": {"labels": {"touched": "true"}}}
        for name in ("first", "second"):
            await scene.call("PATCH", scene.mount_path(name), body)

        async def is_well() -> bool:
            return (await answer_of(port, "/healthz")).status == 200

        await scene.eventually(is_well)
        await gone(scene, "first", "second")


async def test_proxy_variables_change_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _listening() as (url, connections):
        for name in ("http", "https", "all", "grpc"):
            monkeypatch.setenv(f"{name}_proxy", url)
            monkeypatch.setenv(f"{name}_proxy".upper(), url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        await scene.running_pod()
        async with scene.operator():
            await scene.mount()
            await scene.becomes("Mounted")
            await gone(scene, "dm")
        assert connections == []


@asynccontextmanager
async def _listening() -> AsyncIterator[tuple[str, list[object]]]:
    """Serve what is no proxy, and note who comes."""
    connections: list[object] = []

    def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(came, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
