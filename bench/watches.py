# SPDX-License-Identifier: Apache-2.0
"""When things were first seen: objects of the API server, pods in a kubelet's checkpoint.

A thread for each source takes the time at arrival, so whoever asks may come later.
"""

import json
import select
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from bench.clock import Nanoseconds, now
from devicemount_agent.kernel.inotify import IN_MOVED_TO, drain, inotify_add_watch, inotify_init1
from devicemount_testbed.api import Api, DeadlineExceeded, Object

Seen = TypeVar("Seen")

RUN_DEADLINE_S = 12 * 3600.0  # longer than any run
CHECKPOINT = "kubelet_internal_checkpoint"


class WatchEnded(Exception):
    """A source ended before the run did: nothing after that can be measured."""


@dataclass(frozen=True, slots=True)
class Sighting(Generic[Seen]):
    """What a source said of a key, and when that arrived."""

    key: str
    at: Nanoseconds
    seen: Seen


class Sightings(Generic[Seen]):
    """All that a source has said, by key, in order."""

    def __init__(self, source: Iterator[Sighting[Seen]], *, what: str) -> None:
        self._source = source
        self._what = what
        self._by_key: dict[str, list[Sighting[Seen]]] = defaultdict(list)
        self._changed = threading.Condition()
        self._has_ended = False
        threading.Thread(target=self._read, name=what, daemon=True).start()

    def _read(self) -> None:
        try:
            for sighting in self._source:
                with self._changed:
                    self._by_key[sighting.key].append(sighting)
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def first(
        self, key: str, test: Callable[[Seen], bool], *, what: str, deadline_s: float
    ) -> Sighting[Seen]:
        """Return the first sighting for which the test holds, waiting for it if need be.

        Raises DeadlineExceeded, WatchEnded.
        """

        def found() -> Sighting[Seen] | None:
            return next((s for s in self._by_key[key] if test(s.seen)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._has_ended, deadline_s)
            sighting = found()
        if sighting is not None:
            return sighting
        if self._has_ended:
            raise WatchEnded(self._what)
        raise DeadlineExceeded(f"{key}: not {what} within {deadline_s:g} s ({self._what})")


def objects(api: Api, path: str) -> Iterator[Sighting[Object | None]]:
    """Yield each state of each object of a list by name; None when it is gone."""
    for kind, seen in api.watch(path, deadline_s=RUN_DEADLINE_S):
        name = seen["metadata"]["name"]
        yield Sighting(key=name, at=now(), seen=None if kind == "DELETED" else seen)


def pods_in_checkpoint(directory: Path) -> Iterator[Sighting[None]]:
    """Yield the UID of each pod once, when the kubelet's checkpoint first names it."""
    fd = inotify_init1()
    inotify_add_watch(fd, str(directory), IN_MOVED_TO)
    named: set[str] = set()
    while True:
        uids = _uids(directory / CHECKPOINT)
        at = now()
        for uid in uids - named:
            yield Sighting(key=uid, at=at, seen=None)
        named |= uids
        select.select([fd], [], [])
        drain(fd)


def _uids(checkpoint: Path) -> set[str]:
    """Return the UIDs of all pods that the checkpoint names; the kubelet replaces it whole."""
    with suppress(FileNotFoundError):  # no device was ever registered on this node
        entries = json.loads(checkpoint.read_text())["Data"]["PodDeviceEntries"] or []
        return {entry["PodUID"] for entry in entries}
    return set()
