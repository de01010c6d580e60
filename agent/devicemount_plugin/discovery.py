# SPDX-License-Identifier: Apache-2.0
"""Finds the devices of a resource: a pure function of the file system below a root directory.

An id is made of the node's path alone, so that a device keeps it across restarts and replugs:
its path below /dev with "/" as "-", which for most is the node's own name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from devicemount_plugin.config import DeviceID, Nodes, Resource
from devicemount_plugin.health import is_device_node

DEV = "/dev/"
REPLICA_SEPARATOR = "::"


@dataclass(frozen=True, slots=True)
class Device:
    """What the kubelet may give away under one id."""

    id: DeviceID
    path: str  # of its node, on the node and in the container


def discover(resource: Resource, *, root: Path) -> Mapping[DeviceID, Device]:
    """Return the devices that are present, replicas included."""
    devices = (
        Device(id=device_id, path=path)
        for path in _matches(resource.nodes, root=root)
        if is_device_node(path, root=root)
        for device_id in _device_ids(path, replicas=resource.replicas)
    )
    return {device.id: device for device in devices}


def _matches(nodes: Nodes, *, root: Path) -> list[str]:
    if nodes.paths is not None:
        return nodes.paths
    pattern = str(nodes.glob).removeprefix("/")
    return sorted(f"/{path.relative_to(root)}" for path in root.glob(pattern))


def _device_ids(path: str, *, replicas: int) -> Iterable[DeviceID]:
    name = path.removeprefix(DEV).replace("/", "-")
    if replicas == 1:
        return (DeviceID(name),)
    return (DeviceID(f"{name}{REPLICA_SEPARATOR}{number}") for number in range(replicas))
