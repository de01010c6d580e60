# SPDX-License-Identifier: Apache-2.0
"""What sysfs says of buses: which devices are on them, and which device nodes belong to which.

A node belongs to the nearest device of the bus above it: /sys/dev/char/<major>:<minor> leads below
the directory of the device whose driver made it, whatever the node is called.
"""

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from devicemount_plugin.tree import (
    DEV,
    Number,
    below,
    link_name,
    nodes_by_number,
    number_at,
    read_attribute,
    real_path,
)

VIRTUAL = "/sys/devices/virtual/"
KINDS = ("char", "block")
DEVNAME = "DEVNAME="  # in a device's `uevent`: its node's path below /dev
# include/linux/fs.h: the majors that alloc_chrdev_region hands out, each to one driver only.
DYNAMIC_MAJORS = frozenset((*range(234, 255), *range(384, 512)))

Directory = str  # of a device, "/sys/devices/pci0000:00/0000:00:02.0"


class Bus:
    """One look at a bus and at the device nodes of the machine."""

    def __init__(self, name: str, *, root: Path) -> None:
        self._root = root
        self.devices: Mapping[Directory, str] = dict(_devices(name, root=root))
        self._directories = dict(_directories_by_number(root=root))
        self._owners = {
            number: _nearest(directory, self.devices)
            for number, directory in self._directories.items()
        }
        self._paths = nodes_by_number(root=root)

    def attribute(self, directory: Directory, name: str) -> str | None:
        return read_attribute(below(self._root, directory) / name)

    def nodes_of(self, directory: Directory) -> tuple[str, ...]:
        """Return the paths of the device nodes that belong to a device, absent ones too."""
        return self._paths_of(n for n, owner in self._owners.items() if owner == directory)

    def control_nodes(self, directories: Iterable[Directory]) -> tuple[str, ...]:
        """Return the nodes that the devices' driver made for all of them.

        They belong to no device and have the major of the devices' own nodes. Only a major that one
        driver has to itself tells that: dynamic, and of no other device.
        """
        own = set(directories)
        users: dict[int, set[str | None]] = {}
        for number, owner in self._owners.items():
            if number.kind == "char" and not self._directories[number].startswith(VIRTUAL):
                users.setdefault(number.major, set()).add(owner)
        majors = {major for major, owners in users.items() if owners <= own} & DYNAMIC_MAJORS
        return self._paths_of(
            number
            for number, directory in self._directories.items()
            if number.kind == "char" and number.major in majors and directory.startswith(VIRTUAL)
        )

    def _paths_of(self, numbers: Iterable[Number]) -> tuple[str, ...]:
        paths = (self._paths.get(number) or self._kernels_name(number) for number in numbers)
        return tuple(sorted(path for path in paths if path is not None))

    def _kernels_name(self, number: Number) -> str | None:
        """Return where the kernel makes a node, if nothing is there: so it can be missed."""
        said = self.attribute(self._directories[number], "uevent") or ""
        names = (
            line.removeprefix(DEVNAME) for line in said.splitlines() if line.startswith(DEVNAME)
        )
        path = next((f"{DEV}{name}" for name in names), None)
        return path if path and number_at(path, root=self._root) is None else None


def directory_of(number: Number, *, root: Path) -> Directory | None:
    """Return the directory of a device node's device; unregistered numbers have none."""
    path = f"/sys/dev/{number.kind}/{number}"
    real = real_path(path, root=root)
    return None if real in (None, path) else real


def driver_of(directory: Directory, *, root: Path) -> str | None:
    """Return the name of the driver that is bound to a device."""
    return link_name(below(root, directory) / "driver")


def numa_node_of(directory: Directory, *, root: Path) -> int | None:
    """Return the NUMA node that the device, or the nearest one above it that knows, is at."""
    for path in _upwards(directory):
        said = read_attribute(below(root, path) / "numa_node")
        if said is not None and said.lstrip("-").isdecimal():
            return int(said) if int(said) >= 0 else None
    return None


def _devices(bus: str, *, root: Path) -> Iterator[tuple[Directory, str]]:
    try:
        entries = sorted((root / "sys/bus" / bus / "devices").iterdir())
    except OSError:  # a machine without such a bus
        return
    for entry in entries:
        directory = real_path(f"/{entry.relative_to(root)}", root=root)
        if directory is not None:
            yield directory, entry.name


def _directories_by_number(*, root: Path) -> Iterator[tuple[Number, Directory]]:
    for kind in KINDS:
        try:
            entries = list((root / "sys/dev" / kind).iterdir())
        except OSError:
            continue
        for entry in entries:
            major, _, minor = entry.name.partition(":")
            try:
                target = entry.readlink()
            except OSError:  # gone since
                continue
            # sysfs links straight to the directory: no other link is on the way.
            directory = posixpath.normpath(f"/sys/dev/{kind}/{target}")
            yield Number(kind, int(major), int(minor)), directory


def _nearest(directory: Directory, devices: Mapping[Directory, str]) -> Directory | None:
    return next((path for path in _upwards(directory) if path in devices), None)


def _upwards(directory: Directory) -> Iterator[Directory]:
    path = PurePosixPath(directory)
    yield str(path)
    yield from (str(parent) for parent in path.parents)
