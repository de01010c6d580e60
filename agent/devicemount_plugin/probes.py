# SPDX-License-Identifier: Apache-2.0
"""Answers in plain HTTP: /healthz while the loop runs, /readyz when ready, /metrics."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from http import HTTPStatus

REQUEST_TIMEOUT_S = 5.0  # a client that says nothing does not stay
REQUEST_LIMIT_BYTES = 8192  # a probe's is a few hundred

PLAIN = "text/plain; charset=utf-8"
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus' format

NotReady = Callable[[], Sequence[str]]  # what is still waited for, empty when ready
Metrics = Callable[[], str]


@contextlib.asynccontextmanager
async def serve_probes(
    *, host: str, port: int, not_ready: NotReady, metrics: Metrics
) -> AsyncIterator[int]:
    """Listen as long as the context lasts; its value is the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await reader.readuntil(b"\r\n\r\n")
            writer.write(_response(request, not_ready=not_ready, metrics=metrics))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, host, port, limit=REQUEST_LIMIT_BYTES)
    async with server:
        yield server.sockets[0].getsockname()[1]


def _response(request: bytes, *, not_ready: NotReady, metrics: Metrics) -> bytes:
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method != b"GET" or path not in (b"/healthz", b"/readyz", b"/metrics"):
        return _encode(HTTPStatus.NOT_FOUND, "GET /healthz, /readyz or /metrics\n")
    if path == b"/metrics":
        return _encode(HTTPStatus.OK, metrics(), kind=EXPOSITION)
    waiting_for = not_ready() if path == b"/readyz" else ()
    if waiting_for:
        text = f"waiting for {', '.join(waiting_for)}\n"
        return _encode(HTTPStatus.SERVICE_UNAVAILABLE, text)
    return _encode(HTTPStatus.OK, "ok\n")


def _encode(status: HTTPStatus, text: str, *, kind: str = PLAIN) -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
