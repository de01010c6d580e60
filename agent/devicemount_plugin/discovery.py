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
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from devicemount_plugin.config import DeviceID, Nodes, Pci, Resource, Usb
from devicemount_plugin.sysfs import Bus, Directory, directory_of, numa_node_of
from devicemount_plugin.tree import DEV, Number, is_text, number_at, real_path

MAX_ID_LENGTH = 56  # the API's comment allows 63; "::255" must fit
PORT = "port-"  # before a USB device's port, in its id


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
    number: Number | None = None  # of a node, as long as it is there
    names: tuple[str, ...] = ()  # of a node: all paths that lead to it
    shared: tuple[str, ...] = ()  # "/dev/a with group other": what makes a group unusable


def discover(
    resource: Resource, *, root: Path, known: Mapping[DeviceID, Device]
) -> Mapping[DeviceID, Device]:
    """Return the devices of which something is there, complete or not.

    `known` are those that were offered, as they were seen last; one that is gone has no number.
    """
    found = chain(
        _of_nodes(resource, resource.nodes, root=root, known=known) if resource.nodes else (),
        _of_groups(resource, resource.groups, root=root) if resource.groups else (),
        _of_pci(resource, resource.pci, root=root) if resource.pci else (),
        _of_usb(resource, resource.usb, root=root, known=known) if resource.usb else (),
    )
    return {device.id: device for device in found}


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path of a node is meant by one of the patterns."""
    return any(Path(path).match(pattern) for pattern in patterns)


def _of_nodes(
    resource: Resource, nodes: Nodes, *, root: Path, known: Mapping[DeviceID, Device]
) -> Iterator[Device]:
    """Let each number be one device: the one that it was, else a new one of its node's own name."""

    def rank(path: str) -> tuple[bool, str]:
        return real_path(path, root=root) != path, path

    names: dict[Number, list[str]] = {}
    for path in sorted(nodes.paths or _glob(str(nodes.glob), root=root), key=rank):
        number = number_at(path, root=root)
        if number is not None:
            names.setdefault(number, []).append(path)
    bearers = _bearers(names, known=known, root=root)
    taken = {*known}
    for number, paths in names.items():
        bearer = bearers.get(number)
        label = paths[0] if bearer is None else bearer.label
        own = _free_id(label, taken) if bearer is None else bearer.id
        taken.add(own)
        directory = directory_of(number, root=root)
        yield Device(
            id=own,
            label=label,
            nodes=(label if label in paths else paths[0],),
            control=tuple(resource.control),
            directory=directory,
            numa_node=_numa_node(directory, root=root),
            number=number,
            names=tuple(paths),
        )


def _bearers(
    names: Mapping[Number, Sequence[str]], *, known: Mapping[DeviceID, Device], root: Path
) -> Mapping[Number, Device]:
    """Say which known device each number is, if any.

    It is the one that had the number at the last look, if a path that led to it then still does,
    be it one that the configuration names no more: whatever other links have come, gone, or been
    taken over since. Else the one that was named by the path.
    """
    latest = {one.number: one for one in known.values() if one.number is not None}
    stayed = {
        number: latest[number]
        for number, paths in names.items()
        if number in latest
        and any(
            path in paths or number_at(path, root=root) == number for path in latest[number].names
        )
    }
    there = {one.id for one in stayed.values()}
    named = {one.label: one for one in known.values() if one.id not in there}
    returned = {
        number: next((named[path] for path in paths if path in named), None)
        for number, paths in names.items()
        if number not in stayed
    }
    return stayed | {number: one for number, one in returned.items() if one is not None}


def _free_id(path: str, taken: Container[DeviceID]) -> DeviceID:
    """Name a node after its path, and not as another one is named: /dev/a/b and /dev/a-b."""
    name = own = _to_id(path.removeprefix(DEV))
    told = path
    while own in taken:
        own = _to_id(f"{name}-{_digest(told)}")
        told += own
    return own


def _of_groups(
    resource: Resource, groups: Mapping[str, list[str]], *, root: Path
) -> Iterator[Device]:
    """Let each group be a device; one of which nothing is there only where it is expected."""
    members = {
        name: {number: path for path in paths if (number := number_at(path, root=root))}
        for name, paths in groups.items()
    }
    holders: dict[Number, list[str]] = {}
    for name, numbers in members.items():
        for number in numbers:
            holders.setdefault(number, []).append(name)
    for name, numbers in members.items():
        if not numbers and not resource.expected:
            continue
        directory = next((directory_of(number, root=root) for number in numbers), None)
        yield Device(
            id=DeviceID(name),
            label=f"group {name}",
            nodes=tuple(groups[name]),
            control=tuple(resource.control),
            directory=directory,
            numa_node=_numa_node(directory, root=root),
            shared=tuple(
                f"{path} with group {other}"
                for number, path in numbers.items()
                for other in holders[number]
                if other != name
            ),
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
    ids = {
        directory: _usb_id(usb, serial)
        for directory, serial in serials.items()
        if serial and not _to_id(serial).startswith(PORT)  # or a stick could have another's id
    }
    bearers = Counter(ids.values())
    for directory in serials:
        port = bus.devices[directory]
        found = Device(
            id=_usb_id(usb, f"{PORT}{port}"),
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
    paths = (f"/{path.relative_to(root)}" for path in root.glob(pattern.removeprefix("/")))
    return [path for path in paths if is_text(path)]


def _numa_node(directory: Directory | None, *, root: Path) -> int | None:
    return None if directory is None else numa_node_of(directory, root=root)


def _to_id(name: str) -> DeviceID:
    """Make an id of a name that a device itself may have chosen (a USB serial number)."""
    readable = re.sub(r"[^A-Za-z0-9_.:-]", "_", name.replace("/", "-")).replace("::", "__")
    if len(readable) > MAX_ID_LENGTH:
        readable = f"{readable[:39]}-{_digest(name)}"
    return DeviceID(readable)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
