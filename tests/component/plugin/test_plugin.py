# SPDX-License-Identifier: Apache-2.0
"""The whole plugin: ready means that every resource is registered; what it says of itself."""

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from devicemount_plugin.__main__ import Places, run
from devicemount_plugin.config import Config
from devicemount_plugin.probes import serve_probes
from unit.plugin.node_tree import NodeTree

from .kubelet import DEADLINE_S, running_kubelet, wait_until


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


async def asking(port: int, path: str) -> tuple[int, str]:
    """Get what may not listen yet."""
    try:
        return await get(port, path)
    except ConnectionRefusedError:
        await asyncio.sleep(0.01)
        return 0, ""


async def test_probes_say_what_is_waited_for() -> None:
    waiting_for = ["example.com/a"]
    probes = serve_probes(
        host="127.0.0.1", port=0, not_ready=lambda: waiting_for, metrics=lambda: "a 1\n"
    )
    async with probes as port:
        assert await get(port, "/healthz") == (200, "ok")
        assert await get(port, "/readyz") == (503, "waiting for example.com/a")
        waiting_for.clear()
        assert await get(port, "/readyz?verbose") == (200, "ok")
        assert await get(port, "/metrics") == (200, "a 1")
        assert await get(port, "/") == (404, "GET /healthz, /readyz or /metrics")


@asynccontextmanager
async def running(config: Config, places: Places) -> AsyncIterator[None]:
    plugin = asyncio.create_task(run(config, places))
    try:
        yield
    finally:
        plugin.cancel()
        await asyncio.wait([plugin])
        assert plugin.cancelled()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_every_resource_registers_and_what_lacks_is_told(
    directory: Path, tmp_path: Path
) -> None:
    node = NodeTree(tmp_path)
    node.plug("/dev/gadget0")
    node.add_pci("0000:3b:00.0", "1f36:7030")
    config = Config.model_validate(
        {
            "resources": [
                {"name": "example.com/gadget", "nodes": {"glob": "/dev/gadget*"}},
                {"name": "example.com/absent", "nodes": {"paths": ["/dev/absent"]}},
                {"name": "example.com/card", "pci": {"vendor": "1f36"}},
            ]
        }
    )
    places = Places(tmp_path, device_plugins=directory, reports=tmp_path, probe_port=free_port())
    missing = tmp_path / "missing.json"
    async with running_kubelet(directory) as kubelet:
        async with running(config, places):
            await wait_until(
                lambda: len(kubelet.listings) == 3 and all(kubelet.listings.values()),
                what="all resources are listed",
            )
            assert kubelet.listings["example.com/gadget"] == [{"gadget0": "Healthy"}]
            assert kubelet.listings["example.com/absent"] == [{}]
            assert kubelet.listings["example.com/card"] == [{}]
            said = json.loads(missing.read_text())
            assert list(said) == ["example.com/card"]
            assert said["example.com/card"].startswith("no driver is bound to PCI device 0000:3b")
            assert await get(places.probe_port, "/readyz") == (200, "ok")
            status, metrics = await get(places.probe_port, "/metrics")
        assert json.loads(missing.read_text()) == {}
    lines = metrics.splitlines()
    assert status == 200
    assert 'devicemount_plugin_devices{resource="example.com/gadget",health="Healthy"} 1' in lines
    assert 'devicemount_plugin_devices{resource="example.com/card",health="Healthy"} 0' in lines
    assert 'devicemount_plugin_lacking{resource="example.com/card"} 1' in lines
    assert 'devicemount_plugin_registered{resource="example.com/absent"} 1' in lines
    assert 'devicemount_plugin_registrations_total{resource="example.com/absent"} 1' in lines


async def test_who_is_not_ready_says_why(directory: Path, tmp_path: Path) -> None:
    gadget = {"name": "example.com/gadget", "nodes": {"paths": ["/dev/gadget0"]}}
    config = Config.model_validate({"resources": [gadget]})
    places = Places(tmp_path, device_plugins=directory, reports=tmp_path, probe_port=free_port())
    async with running(config, places), asyncio.timeout(DEADLINE_S):
        said = (503, "")
        while "(" not in said[1]:
            said = await asking(places.probe_port, "/readyz")
    assert said[0] == 503
    assert said[1].startswith(f"waiting for example.com/gadget (no kubelet.sock in {directory}: ")


async def test_a_driver_that_hangs_at_the_start_holds_up_its_own_resource_only(
    directory: Path, tmp_path: Path
) -> None:
    node = NodeTree(tmp_path)
    node.plug("/dev/gadget0")
    node.add_pci("0000:3b:00.0", "1f36:7030", driver="spu")
    hanging = tmp_path / "sys/devices/pci0000:00/0000:3b:00.0/state"
    os.mkfifo(hanging)  # its reader waits for a writer
    check = {"attribute": "state", "healthy": ["up"]}
    config = Config.model_validate(
        {
            "resources": [
                {"name": "example.com/card", "pci": {"vendor": "1f36"}, "health": [check]},
                {"name": "example.com/gadget", "nodes": {"glob": "/dev/gadget*"}},
            ]
        }
    )
    places = Places(tmp_path, device_plugins=directory, reports=tmp_path, probe_port=free_port())
    async with running_kubelet(directory) as kubelet, running(config, places):
        try:
            await wait_until(
                lambda: kubelet.listings.get("example.com/gadget"), what="it is listed"
            )
            said = await get(places.probe_port, "/readyz")
            assert said == (503, "waiting for example.com/card")
        finally:
            waited_for = hanging.rename(tmp_path / "released")
            hanging.write_text("up\n")  # for later looks
            waited_for.open("w").close()
        await wait_until(lambda: "example.com/card" in kubelet.listings, what="the other is too")
