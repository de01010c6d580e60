# SPDX-License-Identifier: Apache-2.0
"""What the prober in the target wrote: the last answer of open(2) before each change, and the
first one after it. Pure.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bench.clock import Nanoseconds

OPENED = 0


@dataclass(frozen=True, slots=True)
class Change:
    """At this moment, opening the path ended with this errno (0: it opened)."""

    at: Nanoseconds
    path: str
    errno: int


def changes_in(text: str) -> Iterator[Change]:
    """Read the prober's lines; a line that it is still writing is left for the next time."""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            at, path, errno = line.split()
            yield Change(at=Nanoseconds(int(at)), path=path, errno=int(errno))


def first_open(changes: Iterable[Change], since: Nanoseconds) -> Nanoseconds | None:
    """Return when a path first opened."""
    opens = (c.at for c in changes if c.at >= since and c.errno == OPENED)
    return next(opens, None)


def first_refusal(changes: Iterable[Change], since: Nanoseconds) -> Nanoseconds | None:
    """Return when a path that had opened was first refused, or no longer there."""
    refusals = (c.at for c in changes if c.at >= since and c.errno != OPENED)
    return next(refusals, None)
