# SPDX-License-Identifier: Apache-2.0
"""Which containers can be grafted into. What cannot be is named, so that nobody waits for it."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from devicemount_agent.container.runtimes import check_program
from devicemount_agent.errors import UnsupportedRuntime
from devicemount_agent.graft.mountinfo import Mounted, mounts_in
from devicemount_agent.graft.target import Container
from devicemount_agent.kernel.files import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    closing,
    facts_of,
    openat2,
)

NODE_PROCESS = Path("/proc/1")  # the agent sees the node's processes (hostPID)
HOST_DEV = Path("/dev")
_DEV = PurePosixPath("/dev")


def supported(container: Container) -> None:
    """Raise UnsupportedRuntime, naming it, for a shape that the agent does not graft into."""
    process = Path(f"/proc/{container.init_pid}")
    try:
        check_program(process)
        mounts = (process / "ns/mnt").readlink()
    finally:
        container.check()  # else it was another process's
    node_mounts = (NODE_PROCESS / "ns/mnt").readlink()
    if mounts == node_mounts:
        raise UnsupportedRuntime("its process has the node's own mount namespace: a VM runtime")
    _check_users(process, container)
    seen = mounts_in(container.pidfd)
    _check_file_systems(seen)
    if not container.runtime.is_known():
        _check_sees(seen, container.mounts)
    container.check()
    _check_dev(container)


def _check_users(process: Path, container: Container) -> None:
    """Refuse mounts that the main process made itself: any volume could be its root there."""
    own = (process / "ns/user").readlink() != (NODE_PROCESS / "ns/user").readlink()
    container.check()
    if own and container.runtime.has_own_users is False:
        raise UnsupportedRuntime("its main process has made a user namespace of its own")


def _check_file_systems(mounts: Iterable[Mounted]) -> None:
    """Refuse, before any path below /dev is walked, what a server may answer never: it may be the
    tenant's own, and would hang whoever asks."""
    for mounted in mounts:
        if _DEV in (mounted.point, *mounted.point.parents) and mounted.is_served():
            raise UnsupportedRuntime(f"its {mounted.point} is a {mounted.kind} file system")


def _check_sees(seen: Iterable[Mounted], mounts: frozenset[str]) -> None:
    """Refuse a process that has nothing of what the kubelet had mounted into the container.

    One that is there is enough: an image may have symlinks on the way to others.
    """
    points = {str(mounted.point) for mounted in seen}
    if mounts and not mounts & points:
        raise UnsupportedRuntime(
            f"its process does not see {min(mounts)}, as the container does: a VM runtime"
        )


def _check_dev(container: Container) -> None:
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
    try:
        fd = openat2(container.root_fd, "/dev", flags=os.O_PATH | os.O_DIRECTORY, resolve=resolve)
    except OSError as error:
        raise UnsupportedRuntime(f"its /dev is no plain directory: {error.strerror}") from error
    with closing(fd):
        device = facts_of(fd).device
    if device == HOST_DEV.stat().st_dev:
        raise UnsupportedRuntime("its /dev is the node's own (a hostPath volume)")
