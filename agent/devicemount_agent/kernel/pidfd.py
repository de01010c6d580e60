# SPDX-License-Identifier: Apache-2.0
"""Processes by pidfd, which pid reuse cannot redirect, and kcmp(2).

Opening a process's pidfd and signalling through it are in `os` and `signal`.
"""

import errno
import select

from devicemount_agent.kernel.syscall import number, syscall

SYS_KCMP = number(x86_64=312, aarch64=272)

KCMP_FILES = 2


def has_ended(pidfd: int) -> bool:
    """Say whether the process has ended (it may still wait for its parent)."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def compare_files(pid: int, other: int) -> int:
    """Return 0 if two tasks share one descriptor table, else -1 or 1: the kernel's own order.

    Where the kernel cannot tell they are taken for different. Raises ProcessLookupError.
    """
    try:
        answer = syscall(SYS_KCMP, pid, other, KCMP_FILES, 0, 0, path=f"/proc/{other}")
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return 1
        raise
    return {0: 0, 1: -1}.get(answer, 1)
