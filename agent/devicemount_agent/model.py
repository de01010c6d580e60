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
    mode: int | None = None  # permission bits; None: the host node's
    uid: int | None = None  # None, as in a CDI spec: the container's user
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class BindMount:
    """A file, directory or socket of the node in a container; never with set-id or devices."""

    path: str  # absolute, in the container
    host_path: str  # absolute, on the node, after symlinks
    read_only: bool
    no_exec: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A symlink that a container gets."""

    path: str  # absolute, in the container
    target: str  # what it says, as it is written


@dataclass(frozen=True, slots=True)
class Overlaid:
    """A text that a container sees, read-only, in place of a file; without one: nothing."""

    path: str  # absolute, in the container
    text: str


@dataclass(frozen=True, slots=True)
class Bound:
    """A bind mount of ours: where it is, and of what, by number: names may come to mean another."""

    path: str  # absolute, in the container, over no symlink
    host_path: str  # absolute, on the node, over no symlink
    device: int  # st_dev and st_ino of what is mounted
    inode: int
    attributes: int  # MOUNT_ATTR_*
    mount_id: int = 0  # in the container, once it was seen there: it stays when directories move

    @property
    def place(self) -> tuple[str, int, int]:
        """Return what is where, however it was asked for."""
        return self.path, self.device, self.inode


@dataclass(frozen=True, slots=True)
class EnvVar:
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Edits:
    """What enters the container besides device nodes (CDI calls all of it containerEdits)."""

    mounts: tuple[BindMount, ...] = ()
    links: tuple[Link, ...] = ()
    overlaid: tuple[Overlaid, ...] = ()
    env: tuple[EnvVar, ...] = ()  # for the env file: a running process cannot be given it

    def paths(self) -> tuple[str, ...]:
        """Return where in the container something comes to be."""
        return (
            *(mount.path for mount in self.mounts),
            *(link.path for link in self.links),
            *(text.path for text in self.overlaid),
        )


@dataclass(frozen=True, slots=True)
class Device:
    """What the kubelet allocated under one id of one resource; several ids may share all of it."""

    resource: ResourceName
    id: DeviceID
    nodes: tuple[DeviceNode, ...]
    edits: Edits = Edits()


class Health(Enum):
    """What the kubelet says of a device."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Concern:
    """Something is not as it should be, although the devices are granted."""

    reason: str  # LibrariesMissing, VersionMismatch, NotPermitted, NotIsolated, DeviceUnhealthy
    message: str  # names what, and what to do


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has one of our devices open or mapped."""

    pid: int  # in the holder's own pid namespace
    command: str  # one line, control characters escaped, at most 256 bytes
    pod_uid: PodUID | None  # None: a process of the host
    container_id: ContainerID | None
    blocking: bool  # False: it had access of its own before us and keeps it after
    note: str = ""  # what is special about it, in a few words
    container: str = ""  # names, where the runtime tells them
    pod_name: str = ""
    pod_namespace: str = ""
