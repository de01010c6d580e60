# SPDX-License-Identifier: Apache-2.0
"""The device files of a node's own /dev, the same on every node: plain data, and its archive.

An archive since a node is up in two seconds, and `mknod` by `mknod` these would be one of them.
"""

import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KVM = Path("/dev/kvm")
MANY = 256
# Major numbers 120 to 127 are for local use: no driver of the kernel has one, so that `open` says
# ENXIO to whoever is allowed and EPERM to whoever is not, and does nothing else.
MANY_MAJOR = 121


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """One device file; `path` is relative to /dev, `kind` is stat.S_IFCHR or stat.S_IFBLK."""

    path: str
    mode: int
    kind: int
    major: int
    minor: int


def _character(path: str, *, mode: int, number: tuple[int, int]) -> DeviceFile:
    major, minor = number
    return DeviceFile(path=path, mode=mode, kind=stat.S_IFCHR, major=major, minor=minor)


BASE = (
    _character("null", mode=0o666, number=(1, 3)),
    _character("zero", mode=0o666, number=(1, 5)),
    _character("full", mode=0o666, number=(1, 7)),
    _character("random", mode=0o666, number=(1, 8)),
    _character("urandom", mode=0o666, number=(1, 9)),
    _character("kmsg", mode=0o644, number=(1, 11)),
    _character("tty", mode=0o666, number=(5, 0)),
    _character("console", mode=0o600, number=(5, 1)),
    *(
        DeviceFile(path=f"loop{minor}", mode=0o660, kind=stat.S_IFBLK, major=7, minor=minor)
        for minor in range(4)
    ),
    _character("loop-control", mode=0o660, number=(10, 237)),
    _character("vcs", mode=0o660, number=(7, 0)),
    _character("vcs1", mode=0o660, number=(7, 1)),
    _character("vcsu1", mode=0o660, number=(7, 65)),
    _character("vcsa1", mode=0o660, number=(7, 129)),
    _character("fuse", mode=0o666, number=(10, 229)),
    _character("net/tun", mode=0o666, number=(10, 200)),
    *(_character(f"many{minor}", mode=0o660, number=(MANY_MAJOR, minor)) for minor in range(MANY)),
)


def device_files() -> tuple[DeviceFile, ...]:
    """Return what a node of this machine has: kvm only where the machine has it."""
    kvm = _character("kvm", mode=0o660, number=(10, 232))
    return (*BASE, kvm) if KVM.is_char_device() else BASE


def write_devices(archive: Path) -> None:
    """Write the archive that a node unpacks into its /dev."""
    with tarfile.open(archive, "w") as tar:
        for member in _members(device_files()):
            tar.addfile(member)


def _members(files: tuple[DeviceFile, ...]) -> Iterator[tarfile.TarInfo]:
    for file in files:
        member = tarfile.TarInfo(file.path)  # owner root
        member.type = tarfile.CHRTYPE if file.kind == stat.S_IFCHR else tarfile.BLKTYPE
        member.mode = file.mode
        member.devmajor = file.major
        member.devminor = file.minor
        yield member
