# SPDX-License-Identifier: Apache-2.0
"""What the kubelet says: its device checkpoint (a private file) and the PodResources API.

The checkpoint names pods by UID and holds the device plugins' full answers, but dead pods stay in
it. PodResources List names pods that are active, but neither UIDs nor nodes. So inotify on the
checkpoint's directory wakes (the kubelet renames a new file over the old one), the checkpoint gives
the content, and List decides; read.py joins them. Calls of List share flights, and its rate limit
(100 a second for the whole socket) is waited out.
"""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from devicemount_agent.bell import Bell
from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.kernel import inotify
from devicemount_agent.model import DeviceID, PodUID, ResourceName
from devicemount_agent.sockets import channel_to
from devicemount_node_api import podresources_pb2, podresources_pb2_grpc

CHECKPOINT_NAME = "kubelet_internal_checkpoint"
REREAD_S = 1.0  # should an event ever be missed

CALL_TIMEOUT_S = 5.0
LIMITED_FOR_S = 10.0  # how long the rate limit is waited out
LIMIT_PAUSE_S = 0.012  # a little above the 10 ms in which the kubelet allows one more call
MESSAGE_LIMIT_BYTES = 64 << 20  # 500 pods with 1000 devices each stay below


@dataclass(frozen=True, slots=True)
class Entry:
    """What one container was given of one resource, by the checkpoint."""

    pod_uid: PodUID
    container: str
    resource: ResourceName
    ids: frozenset[DeviceID]
    answer: bytes  # the device plugin's ContainerAllocateResponse


Listing = Mapping[tuple[str, str], Mapping[str, Mapping[ResourceName, frozenset[DeviceID]]]]
"""(namespace, pod name) -> container -> resource -> ids, of the active pods."""


Registered = Mapping[ResourceName, frozenset[DeviceID]]
"""Resource -> the ids that its device plugin calls healthy."""


def parse_checkpoint(raw: bytes) -> tuple[Entry, ...]:
    """Return the checkpoint's entries. Raises NodeUnavailable if it is not of the known shape."""
    try:
        entries = json.loads(raw)["Data"]["PodDeviceEntries"] or ()
        return tuple(
            Entry(
                pod_uid=PodUID(str(entry["PodUID"])),
                container=str(entry["ContainerName"]),
                resource=ResourceName(str(entry["ResourceName"])),
                ids=frozenset(
                    DeviceID(str(device))
                    for of_numa_node in entry["DeviceIDs"].values()
                    for device in of_numa_node
                ),
                answer=base64.b64decode(entry["AllocResp"] or ""),
            )
            for entry in entries
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NodeUnavailable(
            f"the kubelet's device checkpoint is of no known shape: {error!r}"
        ) from error


def parse_registered(raw: bytes) -> Registered:
    """Return the healthy devices of each registered resource. Raises NodeUnavailable."""
    try:
        registered = json.loads(raw)["Data"]["RegisteredDevices"] or {}
        return {
            ResourceName(str(resource)): frozenset(DeviceID(str(device)) for device in ids or ())
            for resource, ids in registered.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NodeUnavailable(
            f"the kubelet's device checkpoint is of no known shape: {error!r}"
        ) from error


@dataclass(slots=True)
class _Version:
    """One file that the kubelet has written, read once whoever asks."""

    fd: int  # as long as it is open no other file gets its inode
    identity: tuple[int, ...]
    raw: bytes
    entries: tuple[Entry, ...] | None = None  # None: nobody has asked yet
    registered: Registered | None = None


class Checkpoint:
    """The kubelet's file, and a wake-up when there is a new one."""

    def __init__(self, directory: Path, bell: Bell) -> None:
        """Watch the directory. Raises OSError when it is not there."""
        self._path = directory / CHECKPOINT_NAME
        self._changed = asyncio.Event()
        self._version: _Version | None = None
        bell.hang(directory, self._wake, mask=inotify.IN_MOVED_TO)

    def close(self) -> None:
        if self._version is not None:
            os.close(self._version.fd)
            self._version = None

    def read(self) -> tuple[Entry, ...]:
        """Return what stands in it now; nothing before the node's first allocation.

        As long as it is the same file the answer is the same object. Raises NodeUnavailable.
        """
        version = self._now()
        if version is None:
            return ()
        if version.entries is None:
            version.entries = parse_checkpoint(version.raw)
        return version.entries

    def registered(self) -> Registered:
        """Return which devices are healthy now. Raises NodeUnavailable."""
        version = self._now()
        if version is None:
            return {}
        if version.registered is None:
            version.registered = parse_registered(version.raw)
        return version.registered

    def _now(self) -> _Version | None:
        try:
            if self._version is None or self._version.identity != _identity(self._path.stat()):
                self._renew()
        except FileNotFoundError:
            self.close()
        return self._version

    def _renew(self) -> None:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            identity = _identity(os.fstat(fd))  # before it is read: what is added later is another
            with open(fd, "rb", closefd=False) as file:
                raw = file.read()
        except OSError:
            os.close(fd)
            raise
        self.close()
        self._version = _Version(fd, identity, raw)

    async def versions(self) -> AsyncIterator[tuple[Entry, ...]]:
        """Yield what stands in it now and after each change, sometimes the same, for ever."""
        while True:
            changed = self._changed
            yield self.read()
            try:
                async with asyncio.timeout(REREAD_S):
                    await changed.wait()
            except TimeoutError:
                continue

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _identity(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


class PodResources:
    """The kubelet's List, in shared flights."""

    def __init__(self, socket: Path) -> None:
        self._channel = channel_to(socket, message_limit_bytes=MESSAGE_LIMIT_BYTES)
        self._stub = podresources_pb2_grpc.PodResourcesListerStub(self._channel)
        self._in_flight = asyncio.Lock()
        self._next: asyncio.Task[Listing] | None = None

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
        await self._channel.close(None)

    async def list(self) -> Listing:
        """Return an answer that was asked for after this call. Raises NodeUnavailable."""
        if self._next is None:
            self._next = asyncio.create_task(self._flight())
        return await asyncio.shield(self._next)

    async def allocatable(self) -> Registered:
        """Return the healthy devices of plugins that are there. Raises NodeUnavailable."""
        try:
            answer = await self._stub.GetAllocatableResources(
                podresources_pb2.AllocatableResourcesRequest(), timeout=CALL_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise NodeUnavailable(
                f"kubelet's PodResources: {error.code().name}: {error.details()}"
            ) from error
        return _by_resource(answer.devices)

    async def _flight(self) -> Listing:
        async with self._in_flight:
            self._next = None  # who comes from now on needs a later answer
            return _listing(await self._answer())

    async def _answer(self) -> podresources_pb2.ListPodResourcesResponse:
        give_up = asyncio.get_running_loop().time() + LIMITED_FOR_S
        while True:
            try:
                request = podresources_pb2.ListPodResourcesRequest()
                return await self._stub.List(request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if not _is_rate_limit(error) or asyncio.get_running_loop().time() > give_up:
                    raise NodeUnavailable(
                        f"kubelet's PodResources: {error.code().name}: {error.details()}"
                    ) from error
            await asyncio.sleep(LIMIT_PAUSE_S)


def _is_rate_limit(error: grpc.aio.AioRpcError) -> bool:
    """Tell the kubelet's rate limit from an answer above our message limit: the same code."""
    too_large = "larger than max" in (error.details() or "")
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and not too_large


def _listing(answer: podresources_pb2.ListPodResourcesResponse) -> Listing:
    """Join the entries of one device: there is one per NUMA node."""
    listing: dict[tuple[str, str], dict[str, dict[ResourceName, frozenset[DeviceID]]]] = {}
    for pod in answer.pod_resources:
        containers = listing.setdefault((pod.namespace, pod.name), {})
        for container in pod.containers:
            given = containers.setdefault(container.name, {})
            for resource, ids in _by_resource(container.devices).items():
                given[resource] = given.get(resource, frozenset()) | ids
    return listing


def _by_resource(
    devices: Iterable[podresources_pb2.ContainerDevices],
) -> dict[ResourceName, frozenset[DeviceID]]:
    found: dict[ResourceName, frozenset[DeviceID]] = {}
    for some in devices:
        resource = ResourceName(some.resource_name)
        found[resource] = found.get(resource, frozenset()) | frozenset(
            map(DeviceID, some.device_ids)
        )
    return found
