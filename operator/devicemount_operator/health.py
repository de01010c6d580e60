# SPDX-License-Identifier: Apache-2.0
"""Plain HTTP for the kubelet: /healthz says that the process works, /readyz that it has work to
give.

Served from before the election, so that an operator that waits for the Lease is alive and not
ready. That an answer comes at all is the event loop's heartbeat.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Check = Callable[[], str]  # what is wrong, or ""


@asynccontextmanager
async def serve(*, port: int, live: Check, ready: Check) -> AsyncIterator[int]:
    """Serve until the block ends; yields the port (for port 0: the one that was chosen)."""
    app = web.Application()
    app.router.add_get("/healthz", _answer(live))
    app.router.add_get("/readyz", _answer(ready))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, None, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _answer(check: Check) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        wrong = check()
        return web.Response(text=wrong or "ok", status=503 if wrong else 200)

    return answer
