# SPDX-License-Identifier: Apache-2.0
"""Says what is wrong with a device, as it is at this moment.

An *absence* (no driver, no node, no control node) means that the machine is not prepared: such a
device is not offered at all until it was complete once. A *defect* is a device's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from devicemount_plugin.config import Resource
from devicemount_plugin.discovery import Device, matches
from devicemount_plugin.sysfs import driver_of
from devicemount_plugin.tree import below, number_at, read_attribute

SHOWN = 64  # characters of an attribute that are told


class Health(Enum):
    """A device's state as the kubelet spells it."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class FaultKind(Enum):
    """Whether the machine lacks something or the device is bad."""

    ABSENCE = "absence"
    DEFECT = "defect"


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason why a device cannot be given away."""

    kind: FaultKind
    text: str  # a sentence without its full stop


def faults_of(device: Device, resource: Resource, *, root: Path) -> tuple[Fault, ...]:
    """Return everything that is wrong with a device that was just found; nothing: healthy."""
    return (
        *_driver(device, resource, root=root),
        *_nodes(device, resource, root=root),
        *_shared(device),
        *_control(device, root=root),
        *_attributes(device, resource, root=root),
    )


def gone(device: Device) -> Fault:
    return Fault(FaultKind.ABSENCE, f"{device.label} is gone")


def _driver(device: Device, resource: Resource, *, root: Path) -> Iterator[Fault]:
    if resource.pci is None or device.directory is None:
        return
    wanted = resource.pci.driver
    bound = driver_of(device.directory, root=root)
    if bound is None:
        name = f" {wanted}" if wanted else ""
        yield Fault(FaultKind.ABSENCE, f"no driver{name} is bound to {device.label}")
    elif wanted not in (None, bound):
        text = f"driver {bound} is bound to {device.label}, not {wanted}"
        yield Fault(FaultKind.ABSENCE, text)


def _nodes(device: Device, resource: Resource, *, root: Path) -> Iterator[Fault]:
    source = resource.pci or resource.usb
    wanted = source.nodes if source else []
    absent = [path for path in device.nodes if number_at(path, root=root) is None]
    has_none = len(absent) == len(device.nodes)
    if has_none and not resource.groups:
        where = f" {' or '.join(wanted)}" if wanted else " in /dev"
        yield Fault(FaultKind.ABSENCE, f"{device.label} has no device node{where}")
        return
    absent += [
        pattern for pattern in wanted if not any(matches(node, [pattern]) for node in device.nodes)
    ]
    if absent:
        kind = FaultKind.ABSENCE if has_none else FaultKind.DEFECT
        yield Fault(kind, f"{device.label} lacks {', '.join(absent)}")


def _shared(device: Device) -> Iterator[Fault]:
    """Refuse every group that has a node of another: whoever got one would have the other's too."""
    if device.shared:
        yield Fault(FaultKind.DEFECT, f"{device.label} shares {', '.join(device.shared)}")


def _control(device: Device, *, root: Path) -> Iterator[Fault]:
    for path in device.control:
        if number_at(path, root=root) is None:
            yield Fault(FaultKind.ABSENCE, f"the control node {path} is absent")


def _attributes(device: Device, resource: Resource, *, root: Path) -> Iterator[Fault]:
    for check in resource.health:
        said = None
        if device.directory is not None:
            said = read_attribute(below(root, device.directory) / check.attribute)
        if said is None:
            text = f"{device.label}: {check.attribute} cannot be read"
            yield Fault(FaultKind.DEFECT, text)
        elif said not in check.healthy:
            text = f"{device.label}: {check.attribute} is {said[:SHOWN]!a}"
            yield Fault(FaultKind.DEFECT, text)
