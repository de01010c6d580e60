# SPDX-License-Identifier: Apache-2.0
"""Files by descriptor.

Paths that a container controls are resolved once, inside its root, and never again as strings.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from devicemount_agent.kernel.syscall import number, syscall

SYS_OPENAT2 = number(x86_64=437, aarch64=437)
SYS_STATFS = number(x86_64=137, aarch64=43)
SYS_STATX = number(x86_64=332, aarch64=291)

AT_STATX_DONT_SYNC = ctypes.c_long(0x4000)
STATX_TYPE = ctypes.c_long(0x1)
CGROUP2_SUPER_MAGIC = 0x63677270

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

_OPEN_HOW = struct.Struct("<QQQ")
_OPENAT2_ATTEMPTS = 64  # EAGAIN: a rename or mount anywhere raced with the walk
_STATX_SIZE_BYTES = 256
_STATX_MODE_AND_RDEV = struct.Struct("<28xH98xII")  # stx_mode, stx_rdev_major, stx_rdev_minor
_STATFS_SIZE_BYTES = 256
_STATFS_TYPE = struct.Struct("<q")  # f_type, at 0


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close the descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def openat2(dir_fd: int, path: str, *, flags: int, resolve: int) -> int:
    """Open `path` below `dir_fd` as openat2(2) does; the caller closes what it returns."""
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, resolve)
    for _ in range(_OPENAT2_ATTEMPTS):
        try:
            return syscall(SYS_OPENAT2, dir_fd, os.fsencode(path), how, len(how), path=path)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise OSError(errno.EAGAIN, "renames keep racing with the walk", path)


def device_files(directory: str) -> Iterator[tuple[str, int, int]]:
    """Yield (name, mode, rdev) of the device nodes that the links in a directory of /proc lead to.

    From what the kernel has cached, without asking the files' servers: stat(2) would wait for ever
    for a FUSE or NFS server that does not answer, and a tenant can be that server. A link that
    refuses is left out. Raises FileNotFoundError, ProcessLookupError when the process has ended.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE_BYTES)
    with closing(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        directory_fd = ctypes.c_long(fd)
        with os.scandir(fd) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            with suppress(OSError):
                link = os.fsencode(name)
                syscall(
                    SYS_STATX, directory_fd, link, AT_STATX_DONT_SYNC, STATX_TYPE, buffer, path=name
                )
                mode, major, minor = _STATX_MODE_AND_RDEV.unpack_from(buffer)
                if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                    yield name, mode, os.makedev(major, minor)


def lines_of(path: str | Path) -> list[str]:
    """Return the lines of a file of /proc.

    Only a newline ends one: names of processes, mounts and cgroups are a tenant's, the kernel
    escapes no other line end in them, and text mode and splitlines() know several. Bytes that are
    no UTF-8 stay as surrogates. Raises OSError.
    """
    text = Path(path).read_bytes().decode("utf-8", "surrogateescape")
    return text.removesuffix("\n").split("\n")


def statfs_type(path: str) -> int:
    """Return the magic number of the file system at `path`."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE_BYTES)
    syscall(SYS_STATFS, os.fsencode(path), buffer, path=path)
    (magic,) = _STATFS_TYPE.unpack_from(buffer)
    return int(magic)
