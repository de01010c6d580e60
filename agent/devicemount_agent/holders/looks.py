# SPDX-License-Identifier: Apache-2.0
"""Looks at processes in threads that can be left behind.

A process can keep whoever looks at it waiting: while it executes a program, and a file server does
not let it close a file, the kernel keeps locked what /proc says of it. Nobody can tell then what it
has, so whoever has to know fails, and says by whom; it costs one thread until that process goes on.
"""

from collections.abc import Callable, Collection, Iterable
from threading import Lock, Thread
from typing import TypeVar

from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.questions import Asked

WAIT_S = 60.0  # a million descriptors take eleven
STOPPED_WAIT_S = 10.0  # while a pod is stopped: its own file server may be what is waited for
BATCH = 64  # processes that one thread looks at

_Seen = TypeVar("_Seen")


class Looks:
    """All of an agent."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[int, Thread] = {}  # left behind, by the process

    def at(
        self, pids: Iterable[int], look: Callable[[int], _Seen], *, wait_s: float = WAIT_S
    ) -> list[_Seen]:
        """Return what is seen of each. Raises NodeUnavailable, and what `look` raises."""
        all_of_them = tuple(pids)
        self._check(all_of_them)
        looking_at = 0

        def look_at_all() -> list[_Seen]:
            nonlocal looking_at
            seen = []
            for looking_at in all_of_them:
                seen.append(look(looking_at))
            return seen

        asked = Asked(look_at_all)
        thread = Thread(target=asked.run, daemon=True)
        thread.start()
        thread.join(wait_s)
        if thread.is_alive():
            with self._lock:
                self._waiting[looking_at] = thread
            raise _kept_waiting(looking_at)
        return asked.answer()

    def _check(self, pids: Collection[int]) -> None:
        with self._lock:
            self._waiting = {pid: one for pid, one in self._waiting.items() if one.is_alive()}
            for pid in self._waiting.keys() & pids:
                raise _kept_waiting(pid)


def _kept_waiting(pid: int) -> NodeUnavailable:
    return NodeUnavailable(
        f"process {pid} of the node keeps whoever looks at it waiting, and nobody can tell what it"
        " has open: end it, or the file server that it waits for"
    )
