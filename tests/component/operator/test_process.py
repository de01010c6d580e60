# SPDX-License-Identifier: Apache-2.0
"""The operator as a process: killed at its failpoints and started again, told to end, asked how it
is."""

import asyncio
import dataclasses
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from component.operator.control_plane import free_ports
from component.operator.scene import FINALIZER, Scene
from devicemount_agent_api.failpoints import EXIT_STATUS, Failpoint
from devicemount_operator.__main__ import run
from devicemount_operator.errors import LeaseLost

# As `main`, with settings that the environment cannot change: free ports.
MAIN = """
import json, pathlib, sys, uvloop
from devicemount_operator.__main__ import until_signalled
from devicemount_operator.settings import Settings
given = json.loads(sys.argv[1])
given["tls_directory"] = pathlib.Path(given["tls_directory"])
uvloop.run(until_signalled(Settings(**given)))
"""


@asynccontextmanager
async def process(
    scene: Scene, *, failpoint: Failpoint | None = None, marks: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the operator as a process, whose standard error becomes the test's."""
    given = {
        **dataclasses.asdict(scene.settings),
        "tls_directory": str(scene.settings.tls_directory),
    }
    environment = {**os.environ, "DM_FAILPOINT_DIR": str(marks)}
    if failpoint is not None:
        environment["DM_FAILPOINT"] = failpoint.value
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MAIN, json.dumps(given), env=environment
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
        await asyncio.wait_for(child.wait(), 10)


@pytest.mark.parametrize(
    "failpoint", [Failpoint.OPERATOR_AFTER_SHADOW_POD, Failpoint.OPERATOR_AFTER_GRANT]
)
async def test_killed_while_mounting_it_ends_mounted(
    scene: Scene, tmp_path: Path, failpoint: Failpoint
) -> None:
    await scene.running_pod()
    await scene.mount()
    async with process(scene, failpoint=failpoint, marks=tmp_path) as child:
        assert await asyncio.wait_for(child.wait(), 20) == EXIT_STATUS
    before = await scene.shadow()
    async with scene.operator():
        mount = await scene.becomes("Mounted")
    assert [pod["metadata"]["uid"] for pod in await scene.shadows()] == [before["metadata"]["uid"]]
    assert mount["metadata"]["finalizers"] == [FINALIZER]


async def test_killed_between_shadow_pod_and_finalizer_and_the_mount_deleted_it_ends_clean(
    scene: Scene, tmp_path: Path
) -> None:
    failpoint = Failpoint.OPERATOR_AFTER_SHADOW_POD
    await scene.running_pod()
    await scene.mount()
    async with process(scene, failpoint=failpoint, marks=tmp_path) as child:
        assert await asyncio.wait_for(child.wait(), 20) == EXIT_STATUS
    left = await scene.shadow()
    await scene.unmount()
    await scene.gone(scene.mount_path("dm"))
    async with scene.operator():
        await scene.gone(scene.pod_path(left["metadata"]["name"]))


async def test_killed_after_the_revocation_it_ends_clean(scene: Scene, tmp_path: Path) -> None:
    failpoint = Failpoint.OPERATOR_AFTER_REVOKE
    await scene.running_pod()
    await scene.mount()
    async with process(scene, failpoint=failpoint, marks=tmp_path) as child:
        await scene.becomes("Mounted")
        await scene.unmount()
        assert await asyncio.wait_for(child.wait(), 20) == EXIT_STATUS
    assert len(await scene.shadows()) == 1
    async with scene.operator():
        await scene.gone(scene.mount_path("dm"))
    assert await scene.shadows() == []


async def test_told_to_end_it_gives_the_lease_back(scene: Scene, tmp_path: Path) -> None:
    async with process(scene, marks=tmp_path) as child:
        await scene.eventually(scene.lease_holder)
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 10) == 0
    assert await scene.lease_holder() is None


async def test_a_second_one_waits_alive_and_takes_over(scene: Scene) -> None:
    (port,) = free_ports(1)

    async def answer(path: str) -> int:
        return await asyncio.to_thread(_status, f"http://127.0.0.1:{port}{path}")

    async def is_alive() -> bool:
        return await answer("/healthz") == 200

    async def is_ready() -> bool:
        return await answer("/readyz") == 200

    async with AsyncExitStack() as both:
        stop_first = await both.enter_async_context(scene.operator(identity="first"))
        await scene.eventually(scene.lease_holder)
        await both.enter_async_context(scene.operator(identity="second", health_port=port))
        await scene.eventually(is_alive)
        assert not await is_ready()
        stop_first.set()
        await scene.eventually(is_ready)
        assert await scene.lease_holder() == "second"


async def test_one_that_loses_the_lease_ends(scene: Scene) -> None:
    task = asyncio.create_task(run(scene.settings, stop=asyncio.Event()))
    await scene.eventually(scene.lease_holder)
    await scene.take_lease("another")
    with pytest.raises(ExceptionGroup) as ended:
        await asyncio.wait_for(task, 10)
    assert ended.group_contains(LeaseLost)
    await scene.take_lease("")


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
