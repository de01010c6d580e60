# SPDX-License-Identifier: Apache-2.0
"""What a process may have a device by without showing it: descriptors that wait in a socket to be
received, files that are registered with io_uring.

The kernel says how many, and of a ring their names, not which devices they are. It is asked by
links and fdinfo only, which wait for nobody.
"""

import os
import re
from itertools import takewhile

from devicemount_agent.holders.process import patient, tables
from devicemount_agent.kernel.files import closing, lines_of, links_in

IN_FLIGHT = "descriptors in flight"
REGISTERED = "files registered with io_uring"

_RING = "anon_inode:[io_uring]"
_COUNT = "UserFiles:\t"
_FILE = re.compile(r" *[0-9]+: (?P<name>.*)")
_NO_DEVICE = ("<none>", "socket:[", "pipe:[", "anon_inode:")  # how such files are named
_INFO_BYTES = 4096  # a socket's has a few lines
_TRIES = 5  # of reading a ring's fdinfo: while the ring is at work, it says less


@patient
def hidden(pid: int) -> str:
    """Return by what the process may have any file, in a few words; empty: by nothing."""
    for table in tables(pid):
        for name, link in links_in(f"{table}/fd"):
            info = f"{table}/fdinfo/{name}"
            if link == _RING and _has_registered(info):
                return REGISTERED
            if link.startswith("socket:[") and _has_in_flight(info):
                return IN_FLIGHT
    return ""


def _has_in_flight(info: str) -> bool:
    """Tell whether descriptors wait in a unix socket. Linux 5.6. Quick: a server has thousands."""
    try:
        with closing(os.open(info, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            text = os.read(fd, _INFO_BYTES)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"\nscm_fds: " in text and b"\nscm_fds: 0\n" not in text


def _has_registered(info: str) -> bool:
    """Tell whether a ring has registered files that may be devices.

    Where the kernel says how many but not which, or nothing (the ring is at work), they may be.
    """
    for _ in range(_TRIES):
        lines = _lines(info)
        at = next((n for n, line in enumerate(lines) if line.startswith(_COUNT)), None)
        if not lines or (at is not None and lines[at] == f"{_COUNT}0"):
            return False
        listed = takewhile(bool, map(_FILE.fullmatch, lines[at + 1 :] if at is not None else ()))
        if names := [match["name"] for match in listed if match]:
            return not all(name.startswith(_NO_DEVICE) for name in names)
    return True


def _lines(info: str) -> list[str]:
    """Return the lines of a descriptor's fdinfo, none when it has gone."""
    try:
        return lines_of(info)
    except (FileNotFoundError, ProcessLookupError):
        return []
