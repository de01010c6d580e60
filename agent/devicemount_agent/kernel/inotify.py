# SPDX-License-Identifier: Apache-2.0
"""inotify(7) as a bell: it becomes readable when something in a watched directory changes.

What has changed, the watcher looks up itself.
"""

import os

from devicemount_agent.kernel.syscall import number, syscall

SYS_INOTIFY_INIT1 = number(x86_64=294, aarch64=26)
SYS_INOTIFY_ADD_WATCH = number(x86_64=254, aarch64=27)

IN_CLOSE_WRITE = 0x008
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400

_DRAIN_BYTES = 65536  # far above one event's largest size (272 bytes)


def inotify_init1() -> int:
    """Return a non-blocking inotify descriptor; the caller closes it.

    Raises OSError EMFILE when the user's are used up.
    """
    return syscall(SYS_INOTIFY_INIT1, os.O_NONBLOCK | os.O_CLOEXEC, path="inotify")


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Watch `path`; return the watch descriptor."""
    return syscall(SYS_INOTIFY_ADD_WATCH, fd, os.fsencode(path), mask, path=path)


def drain(fd: int) -> None:
    """Read and forget all pending events."""
    try:
        while os.read(fd, _DRAIN_BYTES):
            pass
    except BlockingIOError:
        return
