# SPDX-License-Identifier: Apache-2.0
"""The keyed work queue: what must be looked at, when, and never one key twice at once.

Keys and no contents: what is true is read when the pass runs, so a hundred changes in a row are one
pass. A key that is added while its pass runs gets one more pass. Passes start in the order in which
keys came due, a bounded number at once. A key may be given a time: the earliest one counts, and a
pass takes it off. No thread, no clock but the loop's.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Runs `work(key)` for every key that is due.

    `work` must not raise: the error policy is its own.
    """

    def __init__(self, work: Callable[[K], Coroutine[Any, Any, None]], *, workers: int) -> None:
        self._work = work
        self._workers = workers
        self._due: deque[K] = deque()
        self._waiting: set[K] = set()  # in _due
        self._running: dict[K, asyncio.Task[None]] = {}
        self._again: set[K] = set()  # added while running
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._open = False

    def open(self) -> None:
        """Let passes run: nothing that was added before runs earlier."""
        self._open = True
        self._start()

    def add(self, key: K) -> None:
        """Look at the key as soon as possible."""
        self._forget_timer(key)
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._due.append(key)
            self._start()

    def add_after(self, key: K, *, delay_s: float) -> None:
        """Look at the key in `delay_s` at the latest; an earlier time that it has already stays."""
        loop = asyncio.get_running_loop()
        at = loop.time() + delay_s
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= at:
            return
        self._forget_timer(key)
        self._timers[key] = loop.call_at(at, self._fire, key)

    async def close(self) -> None:
        """Start nothing any more and end what runs."""
        self._open = False
        for key in tuple(self._timers):
            self._forget_timer(key)
        running = tuple(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _fire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _forget_timer(self, key: K) -> None:
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()

    def _start(self) -> None:
        while self._open and self._due and len(self._running) < self._workers:
            key = self._due.popleft()
            self._waiting.discard(key)
            task = asyncio.create_task(self._work(key))
            self._running[key] = task
            task.add_done_callback(partial(self._done, key))

    def _done(self, key: K, task: asyncio.Task[None]) -> None:
        del self._running[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the pass of {key} raised", "exception": error, "task": task}
            )
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        self._start()
