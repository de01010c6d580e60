# SPDX-License-Identifier: Apache-2.0
"""Who holds the devices of each shadow pod, as the last search has seen it, and word of their ends.

The blocking processes are held by pidfd, so that nobody has to search again and again for the
moment in which the last of them ends. One that only closes the device is not heard: who waits
searches again now and then. Belongs to the event loop.
"""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial

from devicemount_agent.holders.search import Sighting
from devicemount_agent.model import Holder, PodUID

HEARD_LIMIT = 32  # pidfds of one shadow pod; when these have ended it is time to search again


@dataclass(slots=True)
class _Known:
    """The holders of one shadow pod's devices."""

    sightings: tuple[Sighting, ...]
    pidfds: dict[int, int] = field(default_factory=dict)  # by pid
    are_gone: asyncio.Event = field(default_factory=asyncio.Event)


class KnownHolders:
    """Those of all shadow pods."""

    def __init__(self, on_change: Callable[[PodUID], None]) -> None:
        self._on_change = on_change
        self._known: dict[PodUID, _Known] = {}

    def of(self, shadow: PodUID) -> tuple[Holder, ...]:
        known = self._known.get(shadow)
        return tuple(sighting.holder for sighting in known.sightings) if known else ()

    def are_blocking(self, shadows: Iterable[PodUID]) -> bool:
        return any(holder.blocking for shadow in shadows for holder in self.of(shadow))

    def note(self, shadow: PodUID, sightings: tuple[Sighting, ...]) -> None:
        """Take what a search has found in place of what was known."""
        before = self.of(shadow)
        self._close(shadow)
        known = self._known[shadow] = _Known(sightings)
        pids = {one.pid for one in sightings if one.holder.blocking and one.pid}
        for pid in sorted(pids)[:HEARD_LIMIT]:
            self._hear(shadow, known, pid)
        if not known.pidfds and (pids or not self.are_blocking((shadow,))):
            known.are_gone.set()  # only of processes it is heard, not of the kernel's own devices
        if self.of(shadow) != before:
            self._on_change(shadow)

    def forget(self, shadow: PodUID) -> None:
        """Forget them all: nobody waits for their end any more."""
        if self._close(shadow):
            self._on_change(shadow)

    async def ended(self, shadows: Collection[PodUID], *, until: float) -> None:
        """Wait until the processes that are known to block have ended, or a monotonic time."""
        waits = [known.are_gone.wait() for uid in shadows if (known := self._known.get(uid))]
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await asyncio.gather(*waits)
        except TimeoutError:
            return

    def close(self) -> None:
        for shadow in tuple(self._known):
            self._close(shadow)

    def _hear(self, shadow: PodUID, known: _Known, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended since: no reason to wait
            return
        known.pidfds[pid] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, partial(self._has_ended, shadow, known, pid))

    def _has_ended(self, shadow: PodUID, known: _Known, pid: int) -> None:
        _close(known.pidfds.pop(pid))
        known.sightings = tuple(one for one in known.sightings if one.pid != pid)
        if not known.pidfds:
            known.are_gone.set()
            self._on_change(shadow)

    def _close(self, shadow: PodUID) -> bool:
        """Forget the holders of a shadow pod; say whether any were known."""
        known = self._known.pop(shadow, None)
        if known is None:
            return False
        for pidfd in known.pidfds.values():
            _close(pidfd)
        known.are_gone.set()  # who waits looks again
        return bool(known.sightings)


def _close(pidfd: int) -> None:
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)
