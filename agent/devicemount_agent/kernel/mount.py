# SPDX-License-Identifier: Apache-2.0
"""Mounts without a place: a file system of our own that no path leads to."""

from devicemount_agent.kernel.files import closing
from devicemount_agent.kernel.syscall import number, syscall

SYS_FSOPEN = number(x86_64=430, aarch64=430)
SYS_FSCONFIG = number(x86_64=431, aarch64=431)
SYS_FSMOUNT = number(x86_64=432, aarch64=432)

FSOPEN_CLOEXEC = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 1


def detached_tmpfs() -> int:
    """Return the root of a new, unattached tmpfs; the caller closes it and thereby ends it."""
    with closing(syscall(SYS_FSOPEN, b"tmpfs", FSOPEN_CLOEXEC, path="tmpfs")) as context_fd:
        syscall(SYS_FSCONFIG, context_fd, FSCONFIG_CMD_CREATE, 0, 0, 0, path="tmpfs")
        return syscall(SYS_FSMOUNT, context_fd, FSMOUNT_CLOEXEC, 0, path="tmpfs")
