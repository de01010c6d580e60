# SPDX-License-Identifier: Apache-2.0
"""A node's /dev and /sys in a directory: real device nodes, and sysfs as the kernel links it."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

PCI_ROOT = "sys/devices/pci0000:00"
FORMATS = {"char": stat.S_IFCHR, "block": stat.S_IFBLK}


class NodeTree:
    """A directory that stands for a node's root. Making device nodes takes root's rights."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev").mkdir(parents=True, exist_ok=True)

    def plug(self, path: str, number: str = "", *, kind: str = "char") -> None:
        """Make a device node; its number, of a major that no driver has, follows from its name."""
        major, _, minor = (number or f"242:{self._minor_of(path)}").partition(":")
        node = self.root / path.removeprefix("/")
        node.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(node, FORMATS[kind] | 0o660, os.makedev(int(major), int(minor)))

    def unplug(self, *paths: str) -> None:
        for path in paths:
            (self.root / path.removeprefix("/")).unlink()

    def link(self, path: str, target: str) -> None:
        link = self.root / path.removeprefix("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)

    def put(self, path: str, text: str) -> None:
        """Write a file, as an attribute of sysfs is read."""
        file = self.root / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def add_pci(self, address: str, ids: str, *, driver: str = "", numa_node: int = -1) -> Path:
        """Add a PCI function; return its directory."""
        directory = self.root / PCI_ROOT / address
        vendor, _, device = ids.partition(":")
        self._fill(directory, vendor=f"0x{vendor}", device=f"0x{device}", numa_node=str(numa_node))
        self._link_below(self.root / "sys/bus/pci/devices" / address, directory)
        if driver:
            self.bind(directory, driver)
        return directory

    def add_usb(self, port: str, ids: str, *, serial: str = "") -> Path:
        """Add a USB device with one interface; return its directory."""
        directory = self.root / PCI_ROOT / "0000:00:14.0/usb1" / port
        vendor, _, product = ids.partition(":")
        self._fill(directory, idVendor=vendor, idProduct=product)
        if serial:
            self._fill(directory, serial=serial)
        interface = directory / f"{port}:1.0"
        interface.mkdir()
        for one in (directory, interface):
            self._link_below(self.root / "sys/bus/usb/devices" / one.name, one)
        return directory

    def bind(self, directory: Path, driver: str) -> None:
        bound = self.root / "sys/bus/pci/drivers" / driver
        bound.mkdir(parents=True, exist_ok=True)
        self._link_below(directory / "driver", bound)

    def register(self, number: str, parent: str | Path, *, name: str, kind: str = "char") -> None:
        """Say in sysfs that a number belongs to a device: a directory, or a virtual class."""
        top = parent if isinstance(parent, Path) else self.root / "sys/devices/virtual" / parent
        directory = top / name
        directory.mkdir(parents=True, exist_ok=True)
        self._link_below(self.root / "sys/dev" / kind / number, directory)

    def _fill(self, directory: Path, **attributes: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in attributes.items():
            (directory / name).write_text(f"{text}\n")

    def _link_below(self, link: Path, target: Path) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))

    def _minor_of(self, path: str) -> int:
        return sum(path.encode()) * 31 + len(path)


def cards(tree: NodeTree, count: int) -> Iterator[str]:
    """Add the devices of accelerator cards, complete; yield their PCI addresses."""
    for index in range(count):
        address = f"0000:3b:0{index}.0"
        directory = tree.add_pci(address, "1f36:7030", driver="spu", numa_node=index // 3)
        tree.register(f"240:{index}", directory, name=f"spu/spu{index}")
        tree.plug(f"/dev/spu{index}", f"240:{index}")
        yield address
