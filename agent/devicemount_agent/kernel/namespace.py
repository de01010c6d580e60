# SPDX-License-Identifier: Apache-2.0
"""System calls in another mount namespace, from a process of many threads.

Only a thread that shares its root and working directory with nobody may change its mount namespace,
so each time one is started that ends with it. There "/" is what a tenant made of it: nothing but
calls that were prepared outside is done, on descriptors; no file is opened by name (save "/"
itself), nothing is imported, logged or looked up.
"""

import os
import threading
from collections.abc import Sequence

from devicemount_agent.kernel.files import closing
from devicemount_agent.kernel.syscall import Prepared, made, number, prepared

SYS_UNSHARE = number(x86_64=272, aarch64=97)
SYS_SETNS = number(x86_64=308, aarch64=268)
SYS_OPENAT = number(x86_64=257, aarch64=56)

AT_FDCWD = -100
CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000


def within(namespace_fd: int, calls: Sequence[Prepared]) -> list[int]:
    """Make calls in the mount namespace that a pidfd or a namespace's descriptor is of, in order.

    Returns what they returned: -errno of the first that failed is the last. Raises OSError where
    the namespace cannot be entered.
    """
    entering = (prepared(SYS_UNSHARE, CLONE_FS), prepared(SYS_SETNS, namespace_fd, CLONE_NEWNS))
    results: list[int] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for step in (*entering, *calls):
                results.append(made(step))
                if results[-1] < 0:
                    return
        except BaseException as error:  # noqa: BLE001  # printed there, it would read source files
            failures.append(error)

    thread = threading.Thread(target=run, name="mount-namespace")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    if len(results) <= len(entering) and results[-1] < 0:
        raise OSError(-results[-1], os.strerror(-results[-1]), "mount namespace")
    return results[len(entering) :]


def descriptors_within(
    namespace_fd: int, calls: Sequence[Prepared], *, path: str
) -> tuple[int, ...]:
    """The same for calls that open something; the caller closes all of them, or gets OSError.

    `path` is only what the error names.
    """
    return _all_or_none(within(namespace_fd, calls), path)


def descriptors_of(calls: Sequence[Prepared], *, path: str) -> tuple[int, ...]:
    """The same in the caller's own mount namespace."""
    results: list[int] = []
    for call in calls:
        results.append(made(call))
        if results[-1] < 0:
            break
    return _all_or_none(results, path)


def root_of(namespace_fd: int) -> int:
    """Return an O_PATH descriptor of a mount namespace's own root; the caller closes it.

    A process in it may have changed its root to anything below: /proc/<pid>/root is that.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    (fd,) = descriptors_within(namespace_fd, [_opening(AT_FDCWD, b"/", flags)], path="/")
    return fd


def mountinfo_of(namespace_fd: int) -> int:
    """Return a descriptor of a mount namespace's mountinfo, seen from its own root likewise.

    What a process in it has as mountinfo is what it sees from its root.
    """
    with closing(os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as proc_fd:
        call = _opening(proc_fd, b"thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        (fd,) = descriptors_within(namespace_fd, [call], path="mountinfo")
    return fd


def _opening(directory_fd: int, path: bytes, flags: int) -> Prepared:
    return prepared(SYS_OPENAT, directory_fd, path, flags, 0)


def _all_or_none(results: Sequence[int], path: str) -> tuple[int, ...]:
    if results and results[-1] < 0:
        for fd in results[:-1]:
            os.close(fd)
        raise OSError(-results[-1], os.strerror(-results[-1]), path)
    return tuple(results)
