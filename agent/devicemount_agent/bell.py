# SPDX-License-Identifier: Apache-2.0
"""Rings when something changes in a directory: one inotify instance for the whole agent, and
polling where the node has none left.

Instances and watches are counted for each user, and the agent is root like many others of the node:
a careless pod can use them all up. Then every bell rings each POLL_S until the kernel gives some
again, so that a loss is noticed as fast as before; it is said once, and by the metric. A ring says
only "look": who hangs a bell looks cheaply, and finds out whether anything has changed.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.kernel import inotify
from devicemount_agent.logs import line

POLL_S = 0.1  # a competitor's container starts 230 ms after the kubelet has written its choice

_USED_UP = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM)

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Hung:
    """One directory whose changes are heard of, until it is taken down."""

    directory: Path
    ring: Callable[[], None]
    mask: int
    watch: int = -1  # -1: polled


class Bell:
    """All watched directories of the agent."""

    def __init__(self) -> None:
        """Needs a running event loop. Raises OSError, but not where instances are used up."""
        self._fd = -1
        self._hung: set[Hung] = set()
        self._poll: asyncio.TimerHandle | None = None
        self._is_told = False
        try:
            self._open()
        except OSError as error:
            self._fall_back(error)

    def close(self) -> None:
        self._hung.clear()
        if self._poll is not None:
            self._poll.cancel()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    @property
    def is_polling(self) -> bool:
        """Tell whether inotify is used up, so that some or all directories are polled."""
        return self._poll is not None

    def hang(self, directory: Path, ring: Callable[[], None], *, mask: int) -> Hung:
        """Call `ring` in the event loop after each event of `mask` in the directory.

        Rings may come without an event, never the other way round. A directory that is removed
        rings once more and is silent then. Raises OSError when it is not there.
        """
        hung = Hung(directory, ring, mask)
        try:
            self._watch(hung)
        except OSError as error:
            self._fall_back(error)
        self._hung.add(hung)
        return hung

    def take_down(self, hung: Hung) -> None:
        """Ring no more for it. Idempotent."""
        self._hung.discard(hung)
        is_shared = any(other.watch == hung.watch for other in self._hung)
        if hung.watch >= 0 and not is_shared:
            with suppress(OSError):  # the kernel has ended it already, and we have yet to hear so
                inotify.inotify_rm_watch(self._fd, hung.watch)
        hung.watch = -1

    def _open(self) -> None:
        self._fd = inotify.inotify_init1()
        asyncio.get_running_loop().add_reader(self._fd, self._heard)

    def _watch(self, hung: Hung) -> None:
        """Raises OSError: the directory is not there, or watches are used up."""
        if self._fd < 0:
            hung.directory.stat()
            return
        mask = hung.mask | inotify.IN_ONLYDIR | inotify.IN_MASK_ADD
        hung.watch = inotify.inotify_add_watch(self._fd, str(hung.directory), mask)

    def _heard(self) -> None:
        events = dict(inotify.drain(self._fd))  # of a watch that ended, the end is the last one
        ringing = [hung for hung in self._hung if hung.watch in events or -1 in events]
        for hung in ringing:
            if events.get(hung.watch, 0) & inotify.IN_IGNORED:
                self._silence(hung)
        _ring_all(ringing)

    def _fall_back(self, error: OSError) -> None:
        if error.errno not in _USED_UP:
            raise error
        if not self._is_told:
            log.warning(line("polled", every_s=POLL_S, error=error))
            self._is_told = True
        if self._poll is None:
            self._poll = asyncio.get_running_loop().call_later(POLL_S, self._look_all)

    def _look_all(self) -> None:
        """Ring what is not watched; go back to inotify as soon as the kernel lets us."""
        self._poll = None
        polled = [hung for hung in self._hung if hung.watch < 0]
        try:
            if self._fd < 0:
                self._open()
            for hung in polled:
                self._watch_again(hung)
        except OSError as error:
            self._fall_back(error)
        else:
            self._is_told = False
            log.info(line("stopped polling", directories=len(self._hung)))
        _ring_all(polled)

    def _watch_again(self, hung: Hung) -> None:
        try:
            self._watch(hung)
        except (FileNotFoundError, NotADirectoryError):
            self._silence(hung)

    def _silence(self, hung: Hung) -> None:
        self._hung.discard(hung)
        hung.watch = -1


def _ring_all(ringing: list[Hung]) -> None:
    for hung in ringing:
        hung.ring()
