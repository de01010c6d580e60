# SPDX-License-Identifier: Apache-2.0
"""Finds the devices of a resource: a pure function of the file system and of what was offered.

An id outlives reboots, replugs and renumbering. It is made of what stays: the node's path below
/dev with "/" as "-", a group's name, a PCI address, a USB device's serial number (its port where it
has none, or where another has the same). A twin or a link that comes or goes does not rename what
is there: its old id may be in use, and under a new one it would be given away again. What the
device needs and lacks is for `health` to say.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from devicemount_plugin.config import DeviceID, Nodes, Pci, Resource, Usb
from devicemount_plugin.sysfs import Bus, Directory, directory_of, numa_node_of
from devicemount_plugin.tree import DEV, number_at, real_path

MAX_ID_LENGTH = 56  # the API's comment allows 63; "::255" must fit


@dataclass(frozen=True, slots=True)
class Device:
    """One thing that can be given away, whole or in replicas."""

    id: DeviceID  # without replica
    label: str  # for people: "PCI device 0000:3b:00.0 (1f36:7030)"
    nodes: tuple[str, ...]  # its own, as configured or found: some may be absent
    control: tuple[str, ...] = ()  # shared by all devices of the resource
    directory: Directory | None = None  # in sysfs
    numa_node: int | None = None
    serial_id: DeviceID | None = None  # of a USB device: its id as long as no other has the same


def discover(
    resource: Resource, *, root: Path, known: Mapping[DeviceID, Device]
) -> Mapping[DeviceID, Device]:
    """Return the devices of which something is there, complete or not.

    `known` are those that were offered, as they were seen last.
    """
    found = chain(
        _of_nodes(resource, resource.nodes, root=root, known=known) if resource.nodes else (),
        _of_groups(resource, resource.groups, root=root) if resource.groups else (),
        _of_pci(resource, resource.pci, root=root) if resource.pci else (),
        _of_usb(resource, resource.usb, root=root, known=known) if resource.usb else (),
    )
    devices: dict[DeviceID, Device] = {}
    for device in found:
        is_taken = device.id in devices  # /dev/a/b and /dev/a-b
        own = _to_id(f"{device.id}-{_digest(device.label)}") if is_taken else device.id
        devices[own] = replace(device, id=own)
    return devices


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path of a node is meant by one of the patterns."""
    return any(Path(path).match(pattern) for pattern in patterns)


def _of_nodes(
    resource: Resource, nodes: Nodes, *, root: Path, known: Mapping[DeviceID, Device]
) -> Iterator[Device]:
    """Let each number be one device: under the name that it was offered by, else its node's own."""

    def rank(path: str) -> tuple[bool, bool, str]:
        return _node_id(path) not in known, real_path(path, root=root) != path, path

    paths = nodes.paths or _glob(str(nodes.glob), root=root)
    numbers = {path: number_at(path, root=root) for path in paths}
    seen = set()
    for path in sorted(paths, key=rank):
        number = numbers[path]
        if number is None or number in seen:
            continue
        seen.add(number)
        directory = directory_of(number, root=root)
        yield Device(
            id=_node_id(path),
            label=path,
            nodes=(path,),
            control=tuple(resource.control),
            directory=directory,
            numa_node=_numa_node(directory, root=root),
        )


def _of_groups(
    resource: Resource, groups: Mapping[str, list[str]], *, root: Path
) -> Iterator[Device]:
    for name, paths in groups.items():
        numbers = [number for path in paths if (number := number_at(path, root=root))]
        if not numbers:
            continue
        directory = directory_of(numbers[0], root=root)
        yield Device(
            id=DeviceID(name),
            label=f"group {name}",
            nodes=tuple(paths),
            control=tuple(resource.control),
            directory=directory,
            numa_node=_numa_node(directory, root=root),
        )


def _of_pci(resource: Resource, pci: Pci, *, root: Path) -> Iterator[Device]:
    bus = Bus("pci", root=root)

    def is_meant(directory: Directory) -> bool:
        vendor, device = (bus.attribute(directory, name) for name in ("vendor", "device"))
        return vendor == f"0x{pci.vendor}" and pci.device in (None, (device or "")[2:])

    functions = [directory for directory in bus.devices if is_meant(directory)]
    control = (*resource.control, *bus.control_nodes(functions))
    for directory in functions:
        address = bus.devices[directory]
        kind = (bus.attribute(directory, "device") or "")[2:]
        yield Device(
            id=_to_id(address),
            label=f"PCI device {address} ({pci.vendor}:{kind})",
            nodes=_filtered(bus.nodes_of(directory), pci.nodes),
            control=tuple(dict.fromkeys(control)),
            directory=directory,
            numa_node=numa_node_of(directory, root=root),
        )


def _of_usb(
    resource: Resource, usb: Usb, *, root: Path, known: Mapping[DeviceID, Device]
) -> Iterator[Device]:
    bus = Bus("usb", root=root)
    serials: dict[Directory, str] = {}
    for directory in bus.devices:
        vendor, product, serial = (
            bus.attribute(directory, name) for name in ("idVendor", "idProduct", "serial")
        )
        if (vendor, product) == (usb.vendor, usb.product) and usb.serial in (None, serial):
            serials[directory] = serial or ""
    ids = {directory: _usb_id(usb, serial) for directory, serial in serials.items() if serial}
    bearers = Counter(ids.values())
    for directory in serials:
        port = bus.devices[directory]
        found = Device(
            id=_usb_id(usb, f"port-{port}"),
            label=f"USB device {usb.vendor}:{usb.product} at port {port}",
            nodes=_filtered(_nodes_of_usb(bus, directory), usb.nodes),
            control=tuple(resource.control),
            directory=directory,
            numa_node=numa_node_of(directory, root=root),
            serial_id=ids.get(directory),
        )
        is_twin = found.serial_id is not None and bearers[found.serial_id] > 1
        yield replace(found, id=_lasting_id(found, known=known, is_twin=is_twin))


def _lasting_id(found: Device, *, known: Mapping[DeviceID, Device], is_twin: bool) -> DeviceID:
    """Choose between a USB device's serial number and its port, as it was chosen before."""
    if found.serial_id is None:
        return found.id
    at_port, bearer = known.get(found.id), known.get(found.serial_id)
    if at_port is not None and at_port.serial_id == found.serial_id:
        return found.id  # a twin is gone since
    if is_twin and (bearer is None or bearer.directory != found.directory):
        return found.id
    return found.serial_id


def _nodes_of_usb(bus: Bus, directory: Directory) -> tuple[str, ...]:
    """Return the nodes of a USB device: its own and its interfaces', which the bus lists too."""
    name = bus.devices[directory]
    interfaces = [path for path, entry in bus.devices.items() if entry.startswith(f"{name}:")]
    nodes = {node for path in (directory, *interfaces) for node in bus.nodes_of(path)}
    return tuple(sorted(nodes))


def _usb_id(usb: Usb, what: str) -> DeviceID:
    return _to_id(f"{usb.vendor}-{usb.product}-{what}")


def _filtered(nodes: Iterable[str], patterns: list[str]) -> tuple[str, ...]:
    return tuple(node for node in nodes if not patterns or matches(node, patterns))


def _glob(pattern: str, *, root: Path) -> list[str]:
    return [f"/{path.relative_to(root)}" for path in root.glob(pattern.removeprefix("/"))]


def _numa_node(directory: Directory | None, *, root: Path) -> int | None:
    return None if directory is None else numa_node_of(directory, root=root)


def _node_id(path: str) -> DeviceID:
    return _to_id(path.removeprefix(DEV))


def _to_id(name: str) -> DeviceID:
    """Make an id of a name that a device itself may have chosen (a USB serial number)."""
    readable = re.sub(r"[^A-Za-z0-9_.:-]", "_", name.replace("/", "-")).replace("::", "__")
    if len(readable) > MAX_ID_LENGTH:
        readable = f"{readable[:39]}-{_digest(name)}"
    return DeviceID(readable)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
