# SPDX-License-Identifier: Apache-2.0
"""What every room of the agent speaks: devices, their numbers, holders; frozen, no I/O."""

from dataclasses import dataclass
from enum import Enum, Flag
from typing import NewType

MountUID = NewType("MountUID", str)  # UID of a DeviceMount
PodUID = NewType("PodUID", str)
ContainerID = NewType("ContainerID", str)  # as CRI gives it, without "containerd://"
ResourceName = NewType("ResourceName", str)  # "nvidia.com/gpu"
DeviceID = NewType("DeviceID", str)  # as the device plugin names it


class NodeType(Enum):
    """Kind of a device node, as the cgroup controllers spell it."""

    CHAR = "c"
    BLOCK = "b"


class Access(Flag):
    """What may be done with a device; never mknod, which containers have already."""

    NONE = 0
    READ = 1
    WRITE = 2

    def __str__(self) -> str:
        """Return "r", "w", "rw" or "", as cgroup v1 spells it."""
        return ("r" if Access.READ in self else "") + ("w" if Access.WRITE in self else "")


@dataclass(frozen=True, slots=True, order=True)
class DeviceNumber:
    """A device as the kernel knows it."""

    kind: str  # NodeType's value: ordered and hashable for the journal
    major: int
    minor: int

    @property
    def node_type(self) -> NodeType:
        return NodeType(self.kind)


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """One device file that a container gets."""

    path: str  # absolute, in the container
    host_path: str  # absolute, after symlinks, on the node
    number: DeviceNumber
    access: Access


@dataclass(frozen=True, slots=True)
class Device:
    """What the kubelet allocated under one id of one resource; several ids may share nodes."""

    resource: ResourceName
    id: DeviceID
    nodes: tuple[DeviceNode, ...]


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has one of our devices open or mapped."""

    pid: int  # in the holder's own pid namespace
    command: str  # one line, control characters escaped, at most 256 bytes
    pod_uid: PodUID | None  # None: a process of the host
    container_id: ContainerID | None
    blocking: bool  # False: it had access of its own before us and keeps it after
