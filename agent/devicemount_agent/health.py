# SPDX-License-Identifier: Apache-2.0
"""Plain HTTP for the kubelet's probes: /healthz (the loop runs) and /readyz (the node can be
served).

Small on purpose: one request a connection, nothing of it is read but its first line, nothing is
told but what is amiss.
"""

import asyncio
from collections.abc import Awaitable, Callable

REQUEST_LIMIT_BYTES = 8192
REQUEST_TIMEOUT_S = 5.0

Check = Callable[[], Awaitable[str]]
"""Says what is amiss, "" if nothing is."""


async def serve(port: int, *, is_ready: Check) -> asyncio.Server:
    """Listen on every address of the pod."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                writer.write(await _response(await reader.readline(), is_ready))
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):  # ValueError: the line is too long
            return
        finally:
            writer.close()

    return await asyncio.start_server(answer, None, port, limit=REQUEST_LIMIT_BYTES)


async def _response(request_line: bytes, is_ready: Check) -> bytes:
    match request_line.split():
        case [b"GET" | b"HEAD", b"/healthz", *_]:
            return _message("200 OK", "ok")
        case [b"GET" | b"HEAD", b"/readyz", *_]:
            amiss = await is_ready()
            return _message("503 Service Unavailable", amiss) if amiss else _message("200 OK", "ok")
        case _:
            return _message("404 Not Found", "not found")


def _message(status: str, text: str) -> bytes:
    body = f"{text}\n".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
