# SPDX-License-Identifier: Apache-2.0
"""The keyed work queue: what must be looked at, when, and never one key twice at once.

Keys and no contents: what is true is read when the pass runs, so a hundred changes in a row are one
pass. A key that is added while its pass runs gets one more pass. A bounded number of passes works
at once. Groups of keys (namespaces) take turns, so that a thousand keys of one delay another's only
key by a pass or two; within a group it is first come, first served. A pass that waits for an agent
steps `aside` meanwhile, and has to wait for its turn again: one that does not answer holds up
nobody. A key may be given a time: the earliest one counts, and a pass takes it off.
"""

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

SPREAD: Final = 0.25  # what failed together is tried again at different times
MAX_SPREAD_S: Final = 5.0

Turn = Callable[[], None]


class _Line:
    """Who waits for a place: the groups in turn, each in its own order."""

    def __init__(self) -> None:
        self._groups: OrderedDict[Hashable, deque[Turn]] = OrderedDict()

    def join(self, group: Hashable, turn: Turn) -> None:
        self._groups.setdefault(group, deque()).append(turn)

    def next(self) -> Turn | None:
        """Take out who is next; the next turn of the same group is after all others'."""
        if not self._groups:
            return None
        group, turns = self._groups.popitem(last=False)
        turn = turns.popleft()
        if turns:
            self._groups[group] = turns
        return turn


class _Places:
    """A number of places, and the line for them."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._line = _Line()
        self._open = False

    def open(self) -> None:
        self._open = True
        self._give()

    def close(self) -> None:
        self._open = False

    def ask(self, group: Hashable, turn: Turn) -> None:
        """Have `turn` called, once, with a place taken for it."""
        self._line.join(group, turn)
        self._give()

    def give_back(self) -> None:
        self._free += 1
        self._give()

    def _give(self) -> None:
        while self._open and self._free and (turn := self._line.next()) is not None:
            self._free -= 1
            turn()


class _Pass:
    """The place of a pass that runs: left while it is aside, in however many of its parts."""

    def __init__(self, places: _Places, *, group: Hashable) -> None:
        self._places = places
        self._group = group
        self._has_place = True
        self._aside = 0  # so many of its parts
        self._admitted: asyncio.Future[None] | None = None  # asked for, by whatever part
        self._is_over = False

    def leave(self) -> None:
        self._aside += 1
        self._give_up()

    async def come_back(self) -> None:
        self._aside -= 1
        if self._aside or self._has_place or self._is_over:
            return
        if (admitted := self._admitted) is None:
            admitted = self._admitted = asyncio.get_running_loop().create_future()
            self._places.ask(self._group, self._admit)
        await asyncio.wait([admitted])

    def end(self) -> None:
        self._is_over = True
        self._give_up()

    def _admit(self) -> None:
        self._has_place = True
        if self._admitted is not None:
            self._admitted.set_result(None)
            self._admitted = None
        if self._is_over:  # it was cancelled meanwhile
            self._give_up()

    def _give_up(self) -> None:
        if self._has_place:
            self._has_place = False
            self._places.give_back()


_running: ContextVar[_Pass | None] = ContextVar("_running", default=None)


@asynccontextmanager
async def aside() -> AsyncIterator[None]:
    """Let other passes work while this one waits for somebody. Outside of a pass: nothing.

    A pass that is cancelled meanwhile ends without coming back.
    """
    running = _running.get()
    if running is None:
        yield
        return
    running.leave()
    comes_back = True
    try:
        yield
    except asyncio.CancelledError:
        comes_back = False
        raise
    finally:
        if comes_back:
            await running.come_back()


class WorkQueue(Generic[K]):
    """Runs `work(key)` for every key that is due.

    `work` must not raise: the error policy is its own.
    """

    def __init__(
        self,
        work: Callable[[K], Coroutine[Any, Any, None]],
        *,
        workers: int,
        group_of: Callable[[K], Hashable],
    ) -> None:
        self._work = work
        self._places = _Places(workers)
        self._group_of = group_of
        self._waiting: set[K] = set()  # in the line, for their pass to start
        self._running: dict[K, asyncio.Task[None]] = {}
        self._again: set[K] = set()  # added while running
        self._timers: dict[K, asyncio.TimerHandle] = {}

    def open(self) -> None:
        """Let passes run: nothing that was added before runs earlier."""
        self._places.open()

    def depth(self) -> int:
        """Return how many keys are due and do not run yet."""
        return len(self._waiting)

    def running(self) -> int:
        """Return how many passes run, those aside too."""
        return len(self._running)

    def add(self, key: K) -> None:
        """Look at the key as soon as possible."""
        self._forget_timer(key)
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._places.ask(self._group_of(key), partial(self._start, key))

    def add_after(self, key: K, *, delay_s: float) -> None:
        """Look at the key in `delay_s` or a little later; an earlier time that it has stays."""
        loop = asyncio.get_running_loop()
        spread_s = min(SPREAD * delay_s, MAX_SPREAD_S) * random.random()  # noqa: S311 (no secret)
        at = loop.time() + delay_s + spread_s
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= at:
            return
        self._forget_timer(key)
        self._timers[key] = loop.call_at(at, self._fire, key)

    async def close(self) -> None:
        """Start nothing any more and end what runs."""
        self._places.close()
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

    def _start(self, key: K) -> None:
        self._waiting.discard(key)
        started = _Pass(self._places, group=self._group_of(key))
        before = _running.set(started)
        try:
            task = asyncio.create_task(self._work(key))
        finally:
            _running.reset(before)
        self._running[key] = task
        task.add_done_callback(partial(self._done, key, started))

    def _done(self, key: K, done: _Pass, task: asyncio.Task[None]) -> None:
        del self._running[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the pass of {key} raised", "exception": error, "task": task}
            )
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        done.end()
