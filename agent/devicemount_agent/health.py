# SPDX-License-Identifier: Apache-2.0
"""Plain HTTP for the kubelet's probes, /healthz (the loop runs) and /readyz (the node can be
served), and for Prometheus, /metrics.

Small on purpose: one request a connection, nothing of it counts but its first line, nothing is
told but what is amiss and how often something happened.
"""

import asyncio
from collections.abc import Awaitable, Callable

from devicemount_agent import metrics

REQUEST_LIMIT_BYTES = 8192
REQUEST_TIMEOUT_S = 5.0
PLAIN = "text/plain"
EXPOSITION = "text/plain; version=0.0.4"  # Prometheus' format

Check = Callable[[], Awaitable[str]]
"""Says what is amiss, "" if nothing is."""


async def serve(port: int, *, is_ready: Check) -> asyncio.Server:
    """Listen on every address of the pod."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                # All of it: closed with something unread, the answer may be lost on its way.
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(await _response(request.partition(b"\r\n")[0], is_ready))
                await writer.drain()
        except (TimeoutError, ConnectionError, EOFError, asyncio.LimitOverrunError):
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
        case [b"GET" | b"HEAD", b"/metrics", *_]:
            return _response_of("200 OK", metrics.exposition(), kind=EXPOSITION)
        case _:
            return _message("404 Not Found", "not found")


def _message(status: str, text: str) -> bytes:
    return _response_of(status, f"{text}\n", kind=PLAIN)


def _response_of(status: str, text: str, *, kind: str) -> bytes:
    body = text.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
