# SPDX-License-Identifier: Apache-2.0
"""An agent whose directory is wrong waits, says which and where to correct it, and goes on."""

import asyncio
import logging
import socket
from pathlib import Path

import pytest

from .conftest import DEADLINE_S, Node
from .test_mount import until


async def probe(port: int) -> str:
    """Return what the agent answers to the kubelet's question; "" before it listens."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return ""
    writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    return answer


async def answered(port: int, words: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if words in await probe(port):
                return
            await asyncio.sleep(0.05)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


async def test_a_wrong_directory_is_named_once_and_waited_for(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    registration = node.settings.device_plugins_directory / "kubelet.sock"
    registration.unlink()
    said = f"no kubelet.sock in {registration.parent}"
    port = node.settings.health_port

    async def correct() -> None:
        """As an administrator does, when both have been told."""
        await answered(port, "503 Service Unavailable")
        await until(lambda: said in caplog.text, "logged")
        listen(registration)

    with caplog.at_level(logging.WARNING):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(correct())
            async with node.agent():
                await answered(port, "200 OK")
                registration.unlink()
                await answered(port, said)
    warnings = [record.getMessage() for record in caplog.records if said in record.getMessage()]
    assert len(warnings) == 1
    assert "correct hostPath of the volume device-plugins" in warnings[0]
