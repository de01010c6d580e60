# SPDX-License-Identifier: Apache-2.0
"""Each directory's own ring; and the same rings, by polling, while the kernel gives no inotify."""

import asyncio
import errno
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from devicemount_agent.bell import Bell
from devicemount_agent.kernel import inotify

DEADLINE_S = 5.0


class Rings:
    """Counts the rings of each directory and lets a test wait for them."""

    def __init__(self) -> None:
        self.counted: Counter[Path] = Counter()
        self._rang = asyncio.Event()

    def of(self, directory: Path) -> Callable[[], None]:
        def ring() -> None:
            self.counted[directory] += 1
            self._rang.set()

        return ring

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not is_so():
                self._rang.clear()
                await self._rang.wait()


class Exhausted:
    """What the kernel answers while a user's instances or watches are used up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.instances = self.watches = False
        init, add = inotify.inotify_init1, inotify.inotify_add_watch

        def inotify_init1() -> int:
            if self.instances:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "inotify")
            return init()

        def inotify_add_watch(fd: int, path: str, mask: int) -> int:
            if self.watches:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return add(fd, path, mask)

        monkeypatch.setattr(inotify, "inotify_init1", inotify_init1)
        monkeypatch.setattr(inotify, "inotify_add_watch", inotify_add_watch)


@pytest.fixture
def exhausted(monkeypatch: pytest.MonkeyPatch) -> Exhausted:
    return Exhausted(monkeypatch)


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    pair = tmp_path / "one", tmp_path / "other"
    for directory in pair:
        directory.mkdir()
    return pair


@asynccontextmanager
async def hung_bell() -> AsyncIterator[Bell]:
    bell = Bell()
    try:
        yield bell
    finally:
        bell.close()


def test_only_the_directory_that_changes_rings(directories: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        rings, (one, other) = Rings(), directories
        async with hung_bell() as bell:
            for directory in directories:
                bell.hang(directory, rings.of(directory), mask=inotify.IN_CREATE)
            (one / "new").mkdir()
            await rings.until(lambda: rings.counted[one] > 0)
            assert rings.counted[other] == 0
            assert not bell.is_polling

    asyncio.run(scenario())


def test_a_directory_rings_for_everybody_until_taken_down(
    directories: tuple[Path, Path], tmp_path: Path
) -> None:
    async def scenario() -> None:
        rings, (one, _) = Rings(), directories
        first, second = tmp_path / "first", tmp_path / "second"
        async with hung_bell() as bell:
            hung = bell.hang(one, rings.of(first), mask=inotify.IN_CREATE)
            bell.hang(one, rings.of(second), mask=inotify.IN_CREATE)
            (one / "new").mkdir()
            await rings.until(lambda: min(rings.counted[first], rings.counted[second]) == 1)
            bell.take_down(hung)
            bell.take_down(hung)
            (one / "newer").mkdir()
            await rings.until(lambda: rings.counted[second] == 2)
            assert rings.counted[first] == 1

    asyncio.run(scenario())


def test_a_directory_that_is_removed_rings_once_and_is_silent(
    directories: tuple[Path, Path],
) -> None:
    async def scenario() -> None:
        rings, (one, other) = Rings(), directories
        async with hung_bell() as bell:
            hung = bell.hang(one, rings.of(one), mask=inotify.IN_CREATE)
            bell.hang(other, rings.of(other), mask=inotify.IN_CREATE)
            one.rmdir()
            await rings.until(lambda: rings.counted[one] == 1)
            (other / "new").mkdir()
            await rings.until(lambda: rings.counted[other] > 0)
            assert rings.counted[one] == 1
            bell.take_down(hung)

    asyncio.run(scenario())


def test_a_directory_that_is_not_there_is_said(tmp_path: Path, exhausted: Exhausted) -> None:
    async def scenario() -> None:
        async with hung_bell() as bell:
            with pytest.raises(FileNotFoundError):
                bell.hang(tmp_path / "none", lambda: None, mask=inotify.IN_CREATE)

    asyncio.run(scenario())
    exhausted.instances = True
    asyncio.run(scenario())


@pytest.mark.parametrize("used_up", ["instances", "watches"])
def test_what_is_used_up_is_polled_said_once_and_taken_back(
    used_up: str,
    directories: tuple[Path, Path],
    exhausted: Exhausted,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        rings, (one, other) = Rings(), directories
        setattr(exhausted, used_up, True)
        async with hung_bell() as bell:
            for directory in directories:
                bell.hang(directory, rings.of(directory), mask=inotify.IN_CREATE)
            await rings.until(lambda: min(rings.counted[one], rings.counted[other]) >= 3)
            assert bell.is_polling
            assert [r.message.split()[0] for r in caplog.records if "poll" in r.message] == [
                "polled"
            ]
            setattr(exhausted, used_up, False)
            await rings.until(lambda: not bell.is_polling)
            before = dict(rings.counted)
            (one / "new").mkdir()
            await rings.until(lambda: rings.counted[one] > before[one])
            assert rings.counted[other] == before[other]
        assert "stopped polling directories=2" in caplog.text

    asyncio.run(scenario())


def test_another_error_of_the_kernel_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "inotify")

    monkeypatch.setattr(inotify, "inotify_init1", refused)

    async def scenario() -> None:
        with pytest.raises(PermissionError):
            Bell()

    asyncio.run(scenario())
