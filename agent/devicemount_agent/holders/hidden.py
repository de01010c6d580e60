# SPDX-License-Identifier: Apache-2.0
"""What a process may have a device by without showing it: descriptors that wait in a socket to be
received, files that are registered with io_uring, requests of io_uring that wait for their file.

The kernel says how many, and of a ring their names, not which devices they are. It is asked by
links and fdinfo only, which wait for nobody.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from devicemount_agent.holders.process import patient, tables
from devicemount_agent.kernel.files import closing, lines_of, links_in

IN_FLIGHT = "descriptors in flight"
REGISTERED = "files registered with io_uring"
REQUESTED = "requests of io_uring in flight"

_RING = "anon_inode:[io_uring]"
_SOCKET = "socket:["
_NO_DEVICE = ("<none>", _SOCKET, "pipe:[", "anon_inode:")  # how such files are named
_FILES = re.compile(r"UserFiles:\t(?P<found>[0-9]+)")
_FILE = re.compile(r" *[0-9]+: (?P<found>.*)")
_REQUESTS = re.compile(r"(?P<found>PollList):")
_REQUEST = re.compile(r"  op=(?P<found>[0-9]+), .*")
# Those of include/uapi/linux/io_uring.h that take nothing but a socket, and do not wait while there
# is something to be received: recvmsg, accept, connect, recv, recv_zc.
_OF_SOCKETS = frozenset(("10", "13", "16", "27", "58"))
_INFO_BYTES = 4096  # a socket's has a few lines
_TRIES = 5  # of reading a ring's fdinfo: while the ring is at work, it says less
_PAUSE_S = 0.001


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a ring keeps open."""

    files: frozenset[str] = frozenset()  # names
    requests: frozenset[str] = frozenset()  # numbers of operations


@patient
def hidden(pid: int) -> str:
    """Return by what the process may have any file, in a few words; empty: by nothing."""
    sockets: set[str] = set()  # registered ones
    for info, link in _descriptors(pid):
        if link == _RING:
            kept = _kept(info)
            if kept is None or not all(name.startswith(_NO_DEVICE) for name in kept.files):
                return REGISTERED
            if not kept.requests <= _OF_SOCKETS:
                return REQUESTED
            sockets.update(name for name in kept.files if name.startswith(_SOCKET))
        elif link.startswith(_SOCKET) and _has_in_flight(info):
            return IN_FLIGHT
    return REGISTERED if sockets and _unshown(pid, sockets) else ""


def _descriptors(pid: int) -> Iterator[tuple[str, str]]:
    """Yield (fdinfo, where it leads) of all descriptors of a process."""
    for table in tables(pid):
        for name, link in links_in(f"{table}/fd"):
            yield f"{table}/fdinfo/{name}", link


def _unshown(pid: int, sockets: set[str]) -> set[str]:
    """Return which of the registered sockets may have something in flight: no descriptor of the
    process says that they have nothing."""
    left = set(sockets)
    for info, link in _descriptors(pid):
        if link in left and not _has_in_flight(info):
            left.remove(link)
    return left


def _has_in_flight(info: str) -> bool:
    """Tell whether descriptors wait in a unix socket. Linux 5.6. Quick: a server has thousands."""
    try:
        with closing(os.open(info, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            text = os.read(fd, _INFO_BYTES)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"\nscm_fds: " in text and b"\nscm_fds: 0\n" not in text


def _names_are_paths(release: str) -> bool:
    """Tell whether a ring's fdinfo names files by paths. Linux 6.14.

    Before, it was by the last name of each, which a tenant can choose, also as "pipe:[1]".
    """
    version = re.match(r"([0-9]+)\.([0-9]+)", release)
    return version is not None and (int(version[1]), int(version[2])) >= (6, 14)


def _kept(info: str) -> _Kept | None:
    """Return what a ring keeps open.

    None where the kernel says how many files but not which, or nothing (the ring is at work).
    """
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S)
        lines = _lines(info)
        if not lines:
            return _Kept()
        count, files = _listed(lines, _FILES, _FILE)
        heading, requests = _listed(lines, _REQUESTS, _REQUEST)
        if count == "0" and heading:
            return _Kept(requests=requests)
        if files and heading:
            return _Kept(files, requests) if _names_are_paths(os.uname().release) else None
    return None


def _listed(
    lines: list[str], heading: re.Pattern[str], entry: re.Pattern[str]
) -> tuple[str, frozenset[str]]:
    """Return what was found in a heading, and in the entries below it; empty when not there."""
    rest = iter(lines)
    found = next(filter(None, map(heading.fullmatch, rest)), None)
    entries = takewhile(bool, map(entry.fullmatch, rest))
    return found["found"] if found else "", frozenset(one["found"] for one in entries if one)


def _lines(info: str) -> list[str]:
    """Return the lines of a descriptor's fdinfo, none when it has gone."""
    try:
        return lines_of(info)
    except (FileNotFoundError, ProcessLookupError):
        return []
