# SPDX-License-Identifier: Apache-2.0
"""Plain HTTP: /healthz says that the process works, /readyz that it does its part, /metrics how
much it does.

Served from before the election: a standby that could take over is alive and ready, so that a
rollout of several goes on. That an answer comes at all is the event loop's heartbeat.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from devicemount_agent_api.exposition import CONTENT_TYPE
from devicemount_operator import metrics

Check = Callable[[], str]  # what is wrong, or ""


@asynccontextmanager
async def serve(*, port: int, live: Check, ready: Check) -> AsyncIterator[int]:
    """Serve until the block ends; yields the port (for port 0: the one that was chosen)."""
    app = web.Application()
    app.router.add_get("/healthz", _answer(live))
    app.router.add_get("/readyz", _answer(ready))
    app.router.add_get("/metrics", _figures)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, None, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _figures(_: web.Request) -> web.Response:
    return web.Response(text=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})


def _answer(check: Check) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        wrong = check()
        return web.Response(text=wrong or "ok", status=503 if wrong else 200)

    return answer
