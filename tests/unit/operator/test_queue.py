# SPDX-License-Identifier: Apache-2.0
import asyncio

from devicemount_operator.queue import WorkQueue


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
    queue = WorkQueue(work, workers=2)
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
    queue = WorkQueue(work, workers=1)
    for _ in range(10):
        queue.add("a")
    queue.add("last")
    queue.open()
    await work.until(started=2)
    assert work.started == ["a", "last"]


async def test_a_key_that_is_added_during_its_pass_has_one_more_and_never_two_at_once() -> None:
    work = Work()
    work.gate.clear()
    queue = WorkQueue(work, workers=1)
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
    queue = WorkQueue(work, workers=3)
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
    queue = WorkQueue(work, workers=1)
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
    queue = WorkQueue(work, workers=1)
    queue.open()
    queue.add("a")
    queue.add_after("b", delay_s=3600)
    await work.until(started=1)
    before = asyncio.all_tasks()
    await queue.close()
    assert asyncio.all_tasks() < before
    queue.add("c")
    assert work.started == ["a"]
