# SPDX-License-Identifier: Apache-2.0
"""Mounts that only this process and its children see."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MNT_DETACH = 2
libc = ctypes.CDLL(None, use_errno=True)


def unshare() -> None:
    """Enter a mount namespace of one's own, from which nothing spreads.

    Threads that run already stay where they are; there is no way back.
    """
    _check(libc.unshare(CLONE_NEWNS), "mount namespace")
    _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "/")


def mount(kind: str, place: Path, options: str) -> None:
    """Raises OSError."""
    arguments = kind.encode(), bytes(place), kind.encode(), 0, options.encode()
    _check(libc.mount(*arguments), str(place))


def unmount(place: Path) -> None:
    """Take a mount away with all that is mounted below it. Raises OSError."""
    _check(libc.umount2(bytes(place), MNT_DETACH), str(place))


@contextmanager
def gone_at_the_end() -> Iterator[list[Path]]:
    """Give a list of mounts, which are taken away in reverse."""
    made: list[Path] = []
    try:
        yield made
    finally:
        for place in reversed(made):
            unmount(place)


def _check(result: int, path: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
