# SPDX-License-Identifier: Apache-2.0
"""What was allocated to a shadow pod, and the proof that it was.

The checkpoint must name the shadow pod's UID (so its content is this pod's), and List must show the
mount's shadow pod name with the same ids (so the pod is active and the ids are its). Neither is
enough alone: ids alone do not join them, since entries of dead pods stay in the file. Nodes come
from the device plugin's answer and are looked up on the node.
"""

import asyncio
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from google.protobuf.message import DecodeError

from devicemount_agent.allocation.kubelet import Checkpoint, Entry, Listing, PodResources
from devicemount_agent.errors import AllocationUnknown, Insufficient, NotAllowed
from devicemount_agent.model import (
    Access,
    Device,
    DeviceID,
    DeviceNode,
    DeviceNumber,
    NodeType,
    PodUID,
    ResourceName,
)
from devicemount_agent.requests import ShadowPod
from devicemount_node_api import deviceplugin_pb2

HOLD = (
    "hold"  # the container of a shadow pod that has the devices; others may be added on the way in
)
DEVICES = Path("/dev")  # nothing outside is ever granted
PROOF_PAUSE_S = 0.005  # doubled each time
PROOF_PAUSE_LIMIT_S = 0.1
NODES_LIMIT = 1024  # of one resource: what a directory of nodes may hold


@dataclass(frozen=True, slots=True)
class Choice:
    """The devices that the kubelet chose for a shadow pod."""

    entries: tuple[Entry, ...]

    def ids(self) -> Mapping[ResourceName, frozenset[DeviceID]]:
        return {entry.resource: entry.ids for entry in self.entries}


class Allocation:
    """Asks the kubelet's two sources."""

    def __init__(self, checkpoint: Checkpoint, pod_resources: PodResources) -> None:
        self._checkpoint = checkpoint
        self._pod_resources = pod_resources

    async def chosen(self, uid: PodUID, asked: Mapping[ResourceName, int]) -> Choice:
        """Wait until the checkpoint names the shadow pod. Raises Insufficient, NodeUnavailable."""
        async for entries in self._checkpoint.versions():
            choice = choice_of(entries, uid, asked)
            if choice is not None:
                return choice
        raise AssertionError("the checkpoint's versions do not end")

    async def proven(self, shadow: ShadowPod, namespace: str, choice: Choice) -> None:
        """Wait until List shows the choice under the shadow pod's name. Raises NodeUnavailable.

        The kubelet tells of no change: it is asked again, soon at first (it allows 100 a second).
        """
        pause_s = PROOF_PAUSE_S
        while not await self.holds(shadow, namespace, choice.ids()):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PROOF_PAUSE_LIMIT_S)

    async def holds(
        self, shadow: ShadowPod, namespace: str, ids: Mapping[ResourceName, frozenset[DeviceID]]
    ) -> bool:
        """Tell whether List shows these devices as the shadow pod's. Raises NodeUnavailable."""
        return is_shown(await self._pod_resources.list(), namespace, shadow.name, ids)

    async def still_holds(
        self, shadow: ShadowPod, namespace: str, ids: Mapping[ResourceName, frozenset[DeviceID]]
    ) -> bool:
        """Tell whether both sources say that the devices are the shadow pod's, without waiting."""
        given = {e.resource: e.ids for e in self._checkpoint.read() if _is_of(e, shadow.uid)}
        named = all(given.get(resource) == wanted for resource, wanted in ids.items())
        return named and await self.holds(shadow, namespace, ids)


def _is_of(entry: Entry, uid: PodUID) -> bool:
    return entry.pod_uid == uid and entry.container == HOLD


def choice_of(
    entries: Iterable[Entry], uid: PodUID, asked: Mapping[ResourceName, int]
) -> Choice | None:
    """Pick the shadow pod's entries; None while there are none.

    The kubelet writes all of a container's at once. Raises Insufficient unless there are as many
    devices as asked for.
    """
    given = {entry.resource: entry for entry in entries if _is_of(entry, uid)}
    if not given:
        return None
    for resource, count in asked.items():
        got = len(given[resource].ids) if resource in given else 0
        if got != count:
            raise Insufficient(f"{got} of {count} {resource}")
    return Choice(tuple(given[resource] for resource in sorted(asked)))


def is_shown(
    listing: Listing,
    namespace: str,
    name: str,
    ids: Mapping[ResourceName, frozenset[DeviceID]],
) -> bool:
    """Tell whether List shows exactly these ids in the shadow pod of that name."""
    given = listing.get((namespace, name), {}).get(HOLD, {})
    return all(given.get(resource, frozenset()) == wanted for resource, wanted in ids.items())


def other_with(
    listing: Listing, namespace: str, name: str, ids: Mapping[ResourceName, frozenset[DeviceID]]
) -> tuple[str, str] | None:
    """Return another pod (namespace, name) that List shows with one of these devices, or None."""
    for pod, containers in listing.items():
        if pod == (namespace, name):
            continue
        for given in containers.values():
            if any(given.get(resource, frozenset()) & wanted for resource, wanted in ids.items()):
                return pod
    return None


def devices_of(choice: Choice, *, root: Path = DEVICES) -> tuple[Device, ...]:
    """Return the devices; an answer belongs to all of its ids, so they share its nodes.

    Raises AllocationUnknown for an answer without nodes, NotAllowed for a node outside /dev.
    """
    devices: list[Device] = []
    for entry in choice.entries:
        nodes = _nodes_of(entry, root)
        devices += (Device(entry.resource, id_, nodes) for id_ in sorted(entry.ids))
    return tuple(devices)


def _nodes_of(entry: Entry, root: Path) -> tuple[DeviceNode, ...]:
    try:
        answer = deviceplugin_pb2.ContainerAllocateResponse.FromString(entry.answer)
    except DecodeError as error:
        raise AllocationUnknown(
            f"{entry.resource}: the device plugin's answer is garbled"
        ) from error
    nodes: dict[str, DeviceNode] = {}
    for spec in answer.devices:
        for node in _expanded(spec, root):
            if nodes.setdefault(node.path, node) != node:
                raise AllocationUnknown(f"{entry.resource}: two devices at {node.path}")
        if len(nodes) > NODES_LIMIT:
            raise AllocationUnknown(f"{entry.resource}: more than {NODES_LIMIT} device nodes")
    if not nodes:
        how = (
            "CDI names"
            if answer.cdi_devices
            else "environment variables"
            if answer.envs
            else "nothing"
        )
        raise AllocationUnknown(
            f"{entry.resource}: the device plugin answered {how}, no device nodes"
        )
    return tuple(nodes.values())


def _expanded(spec: deviceplugin_pb2.DeviceSpec, root: Path) -> Iterator[DeviceNode]:
    """Yield the nodes of one DeviceSpec: a directory means those below it, as runtimes do it."""
    inside = PurePosixPath(spec.container_path or spec.host_path)
    access = _access_of(spec.permissions)
    if not inside.is_absolute() or ".." in inside.parts or access is Access.NONE:
        raise AllocationUnknown(f"{inside} ({spec.permissions!r}) is no device in a container")
    host = Path(os.path.realpath(spec.host_path))
    if root not in host.parents:
        raise NotAllowed(f"{spec.host_path} is {host}, outside of {root}")
    try:
        if not host.is_dir():
            yield _node(host, inside, access)
            return
        for directory, _, names in os.walk(host):
            for path in (Path(directory, name) for name in sorted(names)):
                if _is_device(path.lstat().st_mode):
                    yield _node(path, inside / path.relative_to(host), access)
    except FileNotFoundError as error:
        raise AllocationUnknown(f"{error.filename} does not exist on the node") from error


def _node(host: Path, inside: PurePosixPath, access: Access) -> DeviceNode:
    status = host.lstat()
    if not _is_device(status.st_mode):
        raise AllocationUnknown(f"{host} is no device node")
    kind = NodeType.CHAR if stat.S_ISCHR(status.st_mode) else NodeType.BLOCK
    number = DeviceNumber(kind.value, os.major(status.st_rdev), os.minor(status.st_rdev))
    return DeviceNode(path=str(inside), host_path=str(host), number=number, access=access)


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _access_of(permissions: str) -> Access:
    read = Access.READ if "r" in permissions else Access.NONE
    write = Access.WRITE if "w" in permissions else Access.NONE
    return read | write
