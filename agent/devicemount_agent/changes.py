# SPDX-License-Identifier: Apache-2.0
"""Tells who watches that something about a mount has changed; what is so, they ask for.

Changes are remembered as the set of mounts that they concern, so that however many come while a
watcher is slow, nothing piles up and nothing is missed.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from devicemount_agent.requests import MountKey


class Watcher:
    """One who watches. Belongs to the event loop."""

    def __init__(self) -> None:
        self._changed: dict[MountKey, None] = {}
        self._is_any = asyncio.Event()
        self._is_over = False

    def note(self, key: MountKey) -> None:
        self._changed[key] = None
        self._is_any.set()

    def end(self) -> None:
        """Let `changed` return what it has: it will hear of nothing more."""
        self._is_over = True
        self._is_any.set()

    async def changed(self) -> tuple[MountKey, ...]:
        """Wait until something has changed; return what, in order, each once; at the end: ()."""
        await self._is_any.wait()
        changed = tuple(self._changed)
        self._changed.clear()
        if not self._is_over:
            self._is_any.clear()
        return changed


class Changes:
    """Of all mounts of the node."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()

    def note(self, key: MountKey) -> None:
        """Say that what is said of this mount may be different now. Costs next to nothing."""
        for watcher in self._watchers:
            watcher.note(key)

    def close(self) -> None:
        """Tell all who watch that this is the end."""
        for watcher in self._watchers:
            watcher.end()

    @contextmanager
    def watched(self) -> Iterator[Watcher]:
        """Collect changes from now on."""
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
