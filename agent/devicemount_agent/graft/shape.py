# SPDX-License-Identifier: Apache-2.0
"""Which containers can be grafted into. What cannot be is named, so that nobody waits for it."""

import os
from pathlib import Path

from devicemount_agent.errors import UnsupportedRuntime
from devicemount_agent.graft.target import Container
from devicemount_agent.kernel.files import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    closing,
    lines_of,
    openat2,
)

NODE_PROCESS = Path("/proc/1")  # the agent sees the node's processes (hostPID)

# What CRI calls the container's process is then a virtual machine or a kernel in user space.
_SERVED = ("fuse", "nfs", "9p", "ceph", "cifs", "smb", "virtiofs")
_SANDBOXES = ("qemu", "cloud-hypervisor", "firecracker", "stratovirt", "crosvm", "runsc")


def supported(container: Container) -> None:
    """Raise UnsupportedRuntime, naming it, for a shape that the agent does not graft into."""
    process = Path(f"/proc/{container.init_pid}")
    try:
        program = (process / "exe").readlink().name
        mounts, users = _namespaces(process)
    finally:
        container.check()  # else it was another process's
    node_mounts, node_users = _namespaces(NODE_PROCESS)
    if program.startswith(_SANDBOXES):
        raise UnsupportedRuntime(f"its process is {program}: a sandboxed runtime")
    if mounts == node_mounts:
        raise UnsupportedRuntime("its process has the node's own mount namespace: a VM runtime")
    if users != node_users:
        raise UnsupportedRuntime("it has a user namespace of its own (hostUsers: false)")
    _check_file_systems(process)
    container.check()
    _check_dev(container)


def _namespaces(process: Path) -> tuple[Path, Path]:
    return (process / "ns/mnt").readlink(), (process / "ns/user").readlink()


def _check_file_systems(process: Path) -> None:
    """Refuse, before any path below /dev is walked, what a server may answer never: it may be the
    tenant's own, and would hang whoever asks."""
    for line in lines_of(process / "mountinfo"):
        place, _, system = line.partition(" - ")
        point, kind = place.split(" ")[4], system.split(" ")[0]
        if (point == "/dev" or point.startswith("/dev/")) and kind.startswith(_SERVED):
            raise UnsupportedRuntime(f"its {point} is a {kind} file system")


def _check_dev(container: Container) -> None:
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
    try:
        fd = openat2(container.root_fd, "/dev", flags=os.O_PATH | os.O_DIRECTORY, resolve=resolve)
    except OSError as error:
        raise UnsupportedRuntime(f"its /dev is no plain directory: {error.strerror}") from error
    with closing(fd):
        flags = os.fstatvfs(fd).f_flag
    if flags & os.ST_NODEV:
        raise UnsupportedRuntime("its /dev is mounted nodev")
    if flags & os.ST_RDONLY:
        raise UnsupportedRuntime("its /dev is read-only")
