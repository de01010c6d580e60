# SPDX-License-Identifier: Apache-2.0
import asyncio
from collections.abc import Callable

import pytest

from devicemount_operator.queue import WorkQueue, aside


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until it is so."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (nobody is there to tell)
            await asyncio.sleep(0)


def one_group(_: str) -> None:
    """No key has others to wait for."""


class Work:
    """Passes that end when they are told to."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.running = 0
        self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.changed = asyncio.Event()

    async def __call__(self, key: str) -> None:
        self.started.append(key)
        self.running += 1
        self.most = max(self.most, self.running)
        self.changed.set()
        await self.gate.wait()
        self.running -= 1

    async def until(self, *, started: int) -> None:
        async with asyncio.timeout(5):
            while len(self.started) < started:
                self.changed.clear()
                await self.changed.wait()


async def test_nothing_runs_before_the_queue_is_opened() -> None:
    work = Work()
    queue = WorkQueue(work, workers=2, group_of=one_group)
    queue.add("a")
    queue.add_after("b", delay_s=0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert work.started == []
    queue.open()
    await work.until(started=2)
    assert sorted(work.started) == ["a", "b"]


async def test_a_key_that_is_added_often_before_its_pass_has_one_pass() -> None:
    work = Work()
    queue = WorkQueue(work, workers=1, group_of=one_group)
    for _ in range(10):
        queue.add("a")
    queue.add("last")
    queue.open()
    await work.until(started=2)
    assert work.started == ["a", "last"]


async def test_a_key_that_is_added_during_its_pass_has_one_more_and_never_two_at_once() -> None:
    work = Work()
    work.gate.clear()
    queue = WorkQueue(work, workers=1, group_of=one_group)
    queue.open()
    queue.add("a")
    await work.until(started=1)
    queue.add("a")
    queue.add("a")
    work.gate.set()
    await work.until(started=2)
    queue.add("last")
    await work.until(started=3)
    assert work.started == ["a", "a", "last"]
    assert work.most == 1


async def test_no_more_passes_at_once_than_workers_and_first_come_first_served() -> None:
    work = Work()
    work.gate.clear()
    queue = WorkQueue(work, workers=3, group_of=one_group)
    queue.open()
    keys = [str(n) for n in range(9)]
    for key in keys:
        queue.add(key)
    await work.until(started=3)
    assert work.running == 3
    work.gate.set()
    await work.until(started=len(keys))
    assert work.started == keys
    assert work.most == 3


async def test_the_earliest_time_counts_and_a_pass_takes_it_off() -> None:
    work = Work()
    queue = WorkQueue(work, workers=1, group_of=one_group)
    queue.open()
    queue.add_after("a", delay_s=3600)
    queue.add_after("a", delay_s=0.01)
    queue.add_after("a", delay_s=1800)
    await work.until(started=1)
    queue.add_after("b", delay_s=0.01)
    queue.add("b")
    queue.add_after("last", delay_s=0.02)
    await work.until(started=3)
    assert work.started == ["a", "b", "last"]
    await queue.close()


async def test_closing_ends_what_runs_and_forgets_what_was_planned() -> None:
    work = Work()
    work.gate.clear()
    queue = WorkQueue(work, workers=1, group_of=one_group)
    queue.open()
    queue.add("a")
    queue.add_after("b", delay_s=3600)
    await work.until(started=1)
    before = asyncio.all_tasks()
    await queue.close()
    assert asyncio.all_tasks() < before
    queue.add("c")
    assert work.started == ["a"]


async def test_a_thousand_keys_of_one_namespace_delay_another_s_only_key_by_one_pass() -> None:
    work = Work()
    queue = WorkQueue(work, workers=1, group_of=lambda key: key[0])
    for n in range(1000):
        queue.add(f"a{n}")
    queue.add("b0")
    queue.add("b1")
    queue.add("c0")
    queue.open()
    await work.until(started=1003)
    assert work.started[:6] == ["a0", "b0", "c0", "a1", "b1", "a2"]
    assert queue.depth() == 0


async def test_passes_that_are_aside_leave_their_place_to_others_and_ask_for_it_again() -> None:
    answered, worked = asyncio.Event(), list[str]()

    async def work(key: str) -> None:
        if key != "other":
            async with aside():
                await answered.wait()
        worked.append(key)

    queue = WorkQueue(work, workers=1, group_of=lambda key: key == "other")
    queue.open()
    for n in range(5):
        queue.add(str(n))
    queue.add("other")
    await until(lambda: bool(worked) and queue.running() == 5)
    assert worked == ["other"]
    answered.set()
    await until(lambda: not queue.running())
    assert sorted(worked) == ["0", "1", "2", "3", "4", "other"]


async def test_parts_of_a_pass_may_be_aside_at_once() -> None:
    events = [asyncio.Event(), asyncio.Event()]
    queue: WorkQueue[str]
    ends: list[str] = []

    async def part(event: asyncio.Event) -> None:
        async with aside():
            await event.wait()

    async def work(key: str) -> None:
        if key == "split":
            await asyncio.gather(*map(part, events))
        ends.append(key)

    queue = WorkQueue(work, workers=1, group_of=one_group)
    queue.open()
    for key in ("split", "a"):
        queue.add(key)
    for event in events:
        await asyncio.sleep(0)
        event.set()
    await until(lambda: len(ends) == 2)
    queue.add("b")
    await until(lambda: len(ends) == 3)
    assert sorted(ends) == ["a", "b", "split"]


async def test_a_pass_that_is_cancelled_aside_takes_no_place_with_it() -> None:
    never, ends = asyncio.Event(), list[str]()
    tasks: list[asyncio.Task[None]] = []

    async def work(key: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        if key.startswith("hangs"):
            async with aside():
                await never.wait()
        ends.append(key)

    queue = WorkQueue(work, workers=1, group_of=one_group)
    queue.open()
    for key in ("hangs-1", "hangs-2"):
        queue.add(key)
    await until(lambda: len(tasks) == 2)
    for task in tasks:
        task.cancel()
    for key in ("a", "b"):
        queue.add(key)
    await until(lambda: len(ends) == 2)
    assert ends == ["a", "b"]


async def test_closing_does_not_wait_for_those_who_are_aside() -> None:
    async def work(_: str) -> None:
        async with aside():
            await asyncio.Event().wait()

    queue = WorkQueue(work, workers=1, group_of=one_group)
    queue.open()
    for key in ("a", "b"):
        queue.add(key)
    await until(lambda: queue.running() == 2)
    async with asyncio.timeout(5):
        await queue.close()
    assert queue.running() == 0


async def test_a_delay_is_spread_upwards_and_not_far(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = WorkQueue(Work(), workers=1, group_of=one_group)
    monkeypatch.setattr("random.random", lambda: 1.0)
    loop = asyncio.get_running_loop()
    due: list[float] = []
    monkeypatch.setattr(loop, "call_at", lambda at, *_: due.append(at - loop.time()))
    for delay_s in (0.0, 2.0, 3600.0):
        queue.add_after(str(delay_s), delay_s=delay_s)
    assert due == pytest.approx([0.0, 2.5, 3605.0], abs=0.01)
