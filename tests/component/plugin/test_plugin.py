# SPDX-License-Identifier: Apache-2.0
"""The whole plugin: ready means that every resource is registered."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from devicemount_plugin.__main__ import run
from devicemount_plugin.config import Config, Nodes, Resource
from devicemount_plugin.probes import serve_probes

from .kubelet import running_kubelet, wait_until


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dp") as path:
        yield Path(path)


async def get(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body.strip()


async def test_probes_say_what_is_waited_for() -> None:
    waiting_for = ["example.com/a"]
    async with serve_probes(host="127.0.0.1", port=0, not_ready=lambda: waiting_for) as port:
        assert await get(port, "/healthz") == (200, "ok")
        assert await get(port, "/readyz") == (503, "waiting for example.com/a")
        waiting_for.clear()
        assert await get(port, "/readyz?verbose") == (200, "ok")
        assert await get(port, "/metrics") == (404, "GET /healthz or /readyz")


async def test_every_resource_registers_with_the_same_kubelet(
    directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "gadget0").symlink_to("/dev/null")
    config = Config(
        resources=[
            Resource(name="example.com/gadget", nodes=Nodes(glob="/dev/gadget*")),
            Resource(name="example.com/absent", nodes=Nodes(paths=["/dev/absent"])),
        ]
    )
    async with running_kubelet(directory) as kubelet:
        plugin = asyncio.create_task(
            run(config, root=tmp_path, device_plugins=directory, probe_port=0)
        )
        try:
            await wait_until(
                lambda: len(kubelet.listings) == 2 and all(kubelet.listings.values()),
                what="both resources are listed",
            )
            assert kubelet.listings["example.com/gadget"] == [{"gadget0": "Healthy"}]
            assert kubelet.listings["example.com/absent"] == [{}]
        finally:
            plugin.cancel()
            with suppress(asyncio.CancelledError):
                await plugin
