# SPDX-License-Identifier: Apache-2.0
"""Between the operator and the API server: passes everything on, except what a test makes go wrong.

Whoever connects to it is the operator to the API server. Refusals come first; lines of watches pass
through `events`, which may drop, repeat and reorder them.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web

from component.operator.control_plane import LOCAL, ControlPlane

PASSED_ON = ("Accept", "Content-Type")

Answer = Callable[[web.Request], web.Response | None]
Events = Callable[[str, bytes], Iterable[bytes]]  # path, one line -> lines


@dataclass
class FaultProxy:
    """What goes wrong now, and what was asked."""

    kubeconfig: Path
    answers: list[Answer] = field(default_factory=list)
    events: Events | None = None
    is_down: bool = False
    asked: list[str] = field(default_factory=list)  # "GET /api/v1/pods", what was cut too
    connections: set[asyncio.BaseTransport] = field(default_factory=set)
    silent: set[asyncio.BaseTransport] = field(default_factory=set)

    def stop(self) -> None:
        """Cut every connection, and every new one, as a server that is stopped."""
        self.is_down = True
        self.cut()

    def start(self) -> None:
        self.is_down = False

    def cut(self) -> None:
        """Cut what is open."""
        for connection in tuple(self.connections):
            hang_up(connection)

    def silence(self) -> None:
        """Let what is open stay open and say nothing more, no bookmark either."""
        self.silent |= self.connections

    def refuse(
        self, code: int, *, method: str, path: str, times: int, retry_after: int | None = None
    ) -> None:
        """Refuse the next requests of that method whose path has `path` in it."""
        left = times
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        body = {"kind": "Status", "apiVersion": "v1", "code": code, "message": "by the test"}

        def answer(request: web.Request) -> web.Response | None:
            nonlocal left
            if request.method != method or path not in request.path or not left:
                return None
            left -= 1
            return web.json_response(body, status=code, headers=headers)

        self.answers.append(answer)

    def count(self, method: str, path: str) -> int:
        """Return how often that was asked."""
        return sum(1 for one in self.asked if one.startswith(method) and path in one)


@asynccontextmanager
async def between(plane: ControlPlane, directory: Path) -> AsyncIterator[FaultProxy]:
    """Run one until the block ends."""
    context = ssl.create_default_context(cafile=str(plane.authority))
    context.load_cert_chain(plane.operator.certificate, plane.operator.key)
    proxy = FaultProxy(directory / "proxied.kubeconfig")
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{rest:.*}", _Handler(proxy, session, plane.url).answer)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, LOCAL, 0)
            await site.start()
            _write_kubeconfig(proxy.kubeconfig, f"http://{LOCAL}:{runner.addresses[0][1]}")
            yield proxy
        finally:
            await runner.cleanup()


class _Handler:
    def __init__(self, proxy: FaultProxy, session: aiohttp.ClientSession, url: str) -> None:
        self._proxy = proxy
        self._session = session
        self._url = url

    async def answer(self, request: web.Request) -> web.StreamResponse:
        proxy, connection = self._proxy, request.transport
        assert connection is not None
        proxy.asked.append(f"{request.method} {request.path}")
        if proxy.is_down:
            hang_up(connection)
            return web.Response()
        for answer in proxy.answers:
            if (response := answer(request)) is not None:
                return response
        proxy.connections.add(connection)
        try:
            return await self._pass_on(request)
        finally:
            proxy.connections.discard(connection)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        async with self._session.request(
            request.method,
            self._url + request.raw_path,
            data=await request.read(),
            headers={name: request.headers[name] for name in PASSED_ON if name in request.headers},
            skip_auto_headers=PASSED_ON,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as answered:
            if "watch" not in request.query:
                body, kind = await answered.read(), answered.content_type
                return web.Response(status=answered.status, body=body, content_type=kind)
            response = web.StreamResponse(status=answered.status)
            response.content_type = answered.content_type
            await response.prepare(request)
            async for line in _lines(answered):
                changed = self._proxy.events
                for each in [line] if changed is None else changed(request.path, line):
                    if request.transport not in self._proxy.silent:
                        await response.write(each)
            return response


async def _lines(answered: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in answered.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
    yield rest


def hang_up(connection: asyncio.BaseTransport) -> None:
    """Cut a connection, whatever was still to be said."""
    assert isinstance(connection, asyncio.Transport)
    connection.abort()


def _write_kubeconfig(path: Path, url: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "proxied",
        "clusters": [{"name": "proxied", "cluster": {"server": url}}],
        "users": [{"name": "operator", "user": {}}],
        "contexts": [{"name": "proxied", "context": {"cluster": "proxied", "user": "operator"}}],
    }
    path.write_text(yaml.safe_dump(config))
