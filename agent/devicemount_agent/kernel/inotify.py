# SPDX-License-Identifier: Apache-2.0
"""inotify(7) as a bell: it becomes readable when something in a watched directory changes.

What has changed, the watcher looks up itself.
"""

import os
import struct
from collections.abc import Iterator

from devicemount_agent.kernel.syscall import number, syscall

SYS_INOTIFY_INIT1 = number(x86_64=294, aarch64=26)
SYS_INOTIFY_ADD_WATCH = number(x86_64=254, aarch64=27)
SYS_INOTIFY_RM_WATCH = number(x86_64=255, aarch64=28)

IN_MODIFY = 0x002
IN_CLOSE_WRITE = 0x008
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_MASK_ADD = 0x20000000

_DRAIN_BYTES = 65536  # far above one event's largest size (272 bytes)
_EVENT = struct.Struct("=iIII")  # wd, mask, cookie, len; a name of len bytes follows


def inotify_init1() -> int:
    """Return a non-blocking inotify descriptor; the caller closes it.

    Raises OSError EMFILE when the user's are used up.
    """
    return syscall(SYS_INOTIFY_INIT1, os.O_NONBLOCK | os.O_CLOEXEC, path="inotify")


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Watch `path`; return the watch descriptor."""
    return syscall(SYS_INOTIFY_ADD_WATCH, fd, os.fsencode(path), mask, path=path)


def inotify_rm_watch(fd: int, watch: int) -> None:
    """End a watch. Raises OSError EINVAL when the kernel has ended it already."""
    syscall(SYS_INOTIFY_RM_WATCH, fd, watch, path="inotify")


def drain(fd: int) -> Iterator[tuple[int, int]]:
    """Read all pending events; yield (watch descriptor, mask) of each. An overflow's is -1."""
    while True:
        try:
            events = os.read(fd, _DRAIN_BYTES)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(events):
            watch, mask, _cookie, length = _EVENT.unpack_from(events, offset)
            yield watch, mask
            offset += _EVENT.size + length
