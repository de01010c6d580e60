# SPDX-License-Identifier: Apache-2.0
"""Mounts by descriptor: made without a place, changed, then put where a descriptor leads.

Which mount namespace a call is made in decides what it may do: namespace.py makes it in another
one.
"""

import errno
import struct

from devicemount_agent.kernel.files import AT_EMPTY_PATH, closing
from devicemount_agent.kernel.syscall import Prepared, made, number, prepared, syscall

SYS_FSOPEN = number(x86_64=430, aarch64=430)
SYS_FSCONFIG = number(x86_64=431, aarch64=431)
SYS_FSMOUNT = number(x86_64=432, aarch64=432)
SYS_OPEN_TREE = number(x86_64=428, aarch64=428)
SYS_MOVE_MOUNT = number(x86_64=429, aarch64=429)
SYS_MOUNT_SETATTR = number(x86_64=442, aarch64=442)
SYS_UMOUNT2 = number(x86_64=166, aarch64=39)
SYS_FCHDIR = number(x86_64=81, aarch64=50)

FSOPEN_CLOEXEC = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 1
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = 0o2000000
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
AT_RECURSIVE = 0x8000
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_MOUNT_ATTR = struct.Struct("<QQQQ")  # set, clear, propagation, user namespace


def detached_tmpfs() -> int:
    """Return the root of a new, unattached tmpfs; the caller closes it and thereby ends it."""
    with closing(syscall(SYS_FSOPEN, b"tmpfs", FSOPEN_CLOEXEC, path="tmpfs")) as context_fd:
        syscall(SYS_FSCONFIG, context_fd, FSCONFIG_CMD_CREATE, 0, 0, 0, path="tmpfs")
        return syscall(SYS_FSMOUNT, context_fd, FSMOUNT_CLOEXEC, 0, path="tmpfs")


def cloning_tree(fd: int) -> Prepared:
    """Return the call that makes an unattached bind mount of what `fd` holds, with all below it.

    Only in the mount namespace that the descriptor is of.
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE
    return prepared(SYS_OPEN_TREE, fd, b"", flags)


def cloning_directory(fd: int) -> Prepared:
    """The same of a directory alone, without what is mounted below it."""
    return prepared(SYS_OPEN_TREE, fd, b"", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)


def attaching(tree_fd: int, target_fd: int) -> Prepared:
    """Return the call that puts an unattached mount over what `target_fd` holds.

    Only in the mount namespace that the target is of.
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    return prepared(SYS_MOVE_MOUNT, tree_fd, b"", target_fd, b"", flags)


def detaching(directory_fd: int, name: bytes) -> tuple[Prepared, Prepared]:
    """Return the calls that take away what is mounted over one name of a directory.

    Whoever uses it goes on; only in the directory's namespace, in a thread whose working directory
    is its own.
    """
    return (
        prepared(SYS_FCHDIR, directory_fd),
        prepared(SYS_UMOUNT2, name, MNT_DETACH | UMOUNT_NOFOLLOW),
    )


def has_mount_setattr() -> bool:
    """Tell whether the kernel can change an unattached mount: Linux 5.12."""
    call = prepared(SYS_MOUNT_SETATTR, -1, b"", AT_EMPTY_PATH, bytes(_MOUNT_ATTR.size), 0)
    return made(call) != -errno.ENOSYS


def mount_setattr(tree_fd: int, *, sets: int = 0, clears: int = 0) -> None:
    """Change an unattached mount and all below it, and make them private."""
    attributes = _MOUNT_ATTR.pack(sets, clears, MS_PRIVATE, 0)
    flags = AT_EMPTY_PATH | AT_RECURSIVE
    syscall(
        SYS_MOUNT_SETATTR, tree_fd, b"", flags, attributes, len(attributes), path="mount_setattr"
    )
