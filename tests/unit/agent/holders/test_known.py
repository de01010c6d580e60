# SPDX-License-Identifier: Apache-2.0
"""Whose end is waited for, and what is told of it."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicemount_agent.holders.known import KnownHolders
from devicemount_agent.holders.search import Sighting
from devicemount_agent.model import Holder, PodUID

SHADOW = PodUID("shadow")
SOON_S = 0.05
LATER_S = 5.0

Sleepers = list["subprocess.Popen[bytes]"]


def sighting(pid: int, *, blocking: bool = True) -> Sighting:
    holder = Holder(pid=pid, command="job", pod_uid=None, container_id=None, blocking=blocking)
    return Sighting(holder, pid)


def known() -> tuple[KnownHolders, list[PodUID]]:
    told: list[PodUID] = []
    return KnownHolders(told.append), told


@pytest.fixture
def sleepers() -> Iterator[Sleepers]:
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as other:
        yield [one, other]
        one.kill()
        other.kill()


async def test_the_end_of_the_last_one_is_told(sleepers: Sleepers) -> None:
    holders, told = known()
    one, other = sleepers
    holders.note(SHADOW, (sighting(one.pid), sighting(other.pid)))
    assert told == [SHADOW], "who holds is news"
    one.kill()
    other.kill()
    await holders.ended({SHADOW}, until=time.monotonic() + LATER_S)
    assert (holders.of(SHADOW), told) == ((), [SHADOW, SHADOW])


async def test_it_is_waited_for_a_time_only(sleepers: Sleepers) -> None:
    holders, _ = known()
    holders.note(SHADOW, (sighting(sleepers[0].pid),))
    until = time.monotonic() + SOON_S
    await holders.ended({SHADOW}, until=until)
    assert time.monotonic() >= until - 0.01
    holders.close()


async def test_of_the_kernels_own_devices_no_end_is_heard() -> None:
    holders, _ = known()
    holders.note(SHADOW, (sighting(0),))
    until = time.monotonic() + SOON_S
    await holders.ended({SHADOW}, until=until)
    assert time.monotonic() >= until - 0.01


async def test_nobody_is_waited_for_who_does_not_block_or_was_forgotten() -> None:
    holders, _ = known()
    holders.note(SHADOW, (sighting(os.getpid(), blocking=False),))
    await holders.ended({SHADOW, PodUID("other")}, until=time.monotonic() + LATER_S)
    assert not holders.are_blocking((SHADOW,))
    holders.note(SHADOW, (sighting(os.getpid()),))
    assert holders.are_blocking((SHADOW,))
    holders.forget(SHADOW)
    await holders.ended({SHADOW}, until=time.monotonic() + LATER_S)


async def test_what_is_heard_by_descriptor_is_closed_in_the_end() -> None:
    holders, told = known()
    before = open_descriptors()
    holders.note(SHADOW, (sighting(os.getpid()), sighting(os.getppid()), sighting(os.getpid())))
    assert open_descriptors() == before + 2
    holders.close()
    assert open_descriptors() == before
    assert told == [SHADOW]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
