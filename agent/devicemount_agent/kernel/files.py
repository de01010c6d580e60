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
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.kernel.syscall import number, syscall

SYS_OPENAT2 = number(x86_64=437, aarch64=437)
SYS_STATFS = number(x86_64=137, aarch64=43)
SYS_FALLOCATE = number(x86_64=285, aarch64=47)
SYS_STATX = number(x86_64=332, aarch64=291)

FALLOC_FL_KEEP_SIZE = 0x1
AT_STATX_DONT_SYNC = ctypes.c_long(0x4000)
AT_EMPTY_PATH = 0x1000
STATX_TYPE = ctypes.c_long(0x1)
STATX_MODE = 0x2
STATX_INO = 0x100
STATX_SIZE = 0x200
STATX_MNT_ID = 0x1000
STATX_ATTR_MOUNT_ROOT = 0x2000
CGROUP2_SUPER_MAGIC = 0x63677270

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

_OPEN_HOW = struct.Struct("<QQQ")
_OPENAT2_ATTEMPTS = 64  # EAGAIN: a rename or mount anywhere raced with the walk
_STATX_SIZE_BYTES = 256
_STATX = struct.Struct(
    "<8xQ4xIIH2xQQ80xIIIIQ"
)  # attributes, uid, gid, mode, ino, size, rdev's two, dev's two, mnt_id
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


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a descriptor holds, as the kernel has it cached: no file's server is asked."""

    mode: int
    uid: int
    gid: int
    size_bytes: int
    device: int  # st_dev, and with the inode which file it is
    inode: int
    number: int  # st_rdev, of a device file
    mount_id: int  # as mountinfo has it
    is_mount_root: bool


def facts_of(fd: int) -> FileFacts:
    """Return what an O_PATH descriptor holds. Linux 5.8."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE_BYTES)
    wanted = STATX_TYPE.value | STATX_MODE | STATX_INO | STATX_SIZE | STATX_MNT_ID
    flags = AT_STATX_DONT_SYNC.value | AT_EMPTY_PATH
    syscall(SYS_STATX, fd, b"", flags, wanted, buffer, path=f"descriptor {fd}")
    attributes, uid, gid, mode, inode, size, *numbers, mount_id = _STATX.unpack_from(buffer)
    of_major, of_minor, major, minor = numbers
    return FileFacts(
        mode=mode,
        uid=uid,
        gid=gid,
        size_bytes=size,
        device=os.makedev(major, minor),
        inode=inode,
        number=os.makedev(of_major, of_minor),
        mount_id=mount_id,
        is_mount_root=bool(attributes & STATX_ATTR_MOUNT_ROOT),
    )


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


@contextmanager
def regular_file(path: str | Path, *, flags: int = 0) -> Iterator[int]:
    """Open a regular file for reading. Raises OSError for anything else, without opening it.

    A pipe would be waited for, and a device can do something when it is opened. `flags` may hold
    O_NOFOLLOW, where others may write in the directory.
    """
    with closing(os.open(path, os.O_PATH | os.O_CLOEXEC | flags)) as path_fd:
        if not stat.S_ISREG(os.fstat(path_fd).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_CLOEXEC)
    with closing(fd):
        yield fd


def reserve(fd: int, *, offset: int, length_bytes: int) -> None:
    """Take room on the disk for what will be written there; the file grows only by writing.

    Raises OSError: ENOSPC, or EOPNOTSUPP where the file system cannot.
    """
    how = FALLOC_FL_KEEP_SIZE
    syscall(SYS_FALLOCATE, fd, how, offset, length_bytes, path=f"descriptor {fd}")


def beginning_of(fd: int, *, limit_bytes: int) -> bytes:
    """Return what stands in a file from here on, at most so much."""
    with os.fdopen(os.dup(fd), "rb") as file:
        return file.read(limit_bytes)


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


def links_in(directory: str) -> Iterator[tuple[str, str]]:
    """Yield (name, where it leads) of the links in a directory of /proc: no file's server is asked.

    Where a path is too long to be told, it is empty. Nothing when the process has ended.
    """
    try:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with closing(directory_fd):
            with os.scandir(directory_fd) as entries:
                names = [entry.name for entry in entries]
            for name in names:
                with suppress(FileNotFoundError):  # closed meanwhile
                    yield name, _link(name, directory_fd)
    except (FileNotFoundError, ProcessLookupError):
        return


def _link(name: str, directory_fd: int) -> str:
    try:
        return os.readlink(name, dir_fd=directory_fd)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return ""


def lines_of(path: str | Path) -> list[str]:
    """Return the lines of a file of /proc.

    Only a newline ends one: names of processes, mounts and cgroups are a tenant's, the kernel
    escapes no other line end in them, and text mode and splitlines() know several. Bytes that are
    no UTF-8 stay as surrogates. Raises OSError.
    """
    with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        return lines_from(fd)


def lines_from(fd: int) -> list[str]:
    """The same of one that is open."""
    with os.fdopen(os.dup(fd), "rb") as file:
        text = file.read().decode("utf-8", "surrogateescape")
    return text.removesuffix("\n").split("\n")


def statfs_type(path: str) -> int:
    """Return the magic number of the file system at `path`."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE_BYTES)
    syscall(SYS_STATFS, os.fsencode(path), buffer, path=path)
    (magic,) = _STATFS_TYPE.unpack_from(buffer)
    return int(magic)
