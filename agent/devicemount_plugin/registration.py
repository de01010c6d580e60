# SPDX-License-Identifier: Apache-2.0
"""Keeps one resource registered with the kubelet, whatever becomes of the kubelet.

Order matters: listen first, then register, since the kubelet dials back inside Register. Each
registration has a socket of a new name: since 1.37 the kubelet refuses one whose old stream it
has not yet seen end. A kubelet that starts removes all sockets here; that, a new kubelet.sock, or
the end of its stream says that it has forgotten us.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Never

import grpc.aio

from devicemount_node_api import deviceplugin_pb2 as pb
from devicemount_node_api import deviceplugin_pb2_grpc as rpc
from devicemount_plugin.config import ResourceName
from devicemount_plugin.inventory import Inventory
from devicemount_plugin.server import Plugin

API_VERSION = "v1beta1"
KUBELET_SOCKET = "kubelet.sock"
REGISTER_TIMEOUT_S = 10.0  # the kubelet gives itself as long to dial back
POLL_S = 0.5  # how late a restarted kubelet is noticed
RETRY_S = 0.5  # while the kubelet is away
NAME_LENGTH = 40  # of the resource, in the socket's name: the path must stay below 108 bytes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _SocketIdentity:
    """Tells a socket from its successor at the same path, also where inode numbers are reused."""

    device: int
    inode: int
    changed_ns: int


class Registration:
    """One resource's standing with the kubelet."""

    def __init__(self, inventory: Inventory, *, directory: Path) -> None:
        self.inventory = inventory
        self._directory = directory
        self._is_current = False
        self._last_refusal = ""
        self.count = 0  # how often the kubelet has accepted it

    @property
    def resource_name(self) -> ResourceName:
        return self.inventory.resource_name

    def is_current(self) -> bool:
        """Whether the kubelet has accepted it and, as far as we know, has not forgotten it."""
        return self._is_current

    async def keep(self) -> Never:
        """Serve and register, again and again as kubelets come and go."""
        while True:
            try:
                await self._register_once()
            except grpc.aio.AioRpcError as error:
                self._report(error)
                await asyncio.sleep(RETRY_S)

    async def _register_once(self) -> None:
        """Return when the kubelet has forgotten us; raise AioRpcError if it refuses."""
        kubelet = _identify(self._kubelet_socket)
        async with self._listening() as (plugin, socket):
            await self._register(endpoint=socket.name)
            self._is_current, self._last_refusal = True, ""
            self.count += 1
            _log.info(
                "registered resource=%s devices=%d",
                self.resource_name,
                len(self.inventory.listing),
            )
            try:
                while await self._is_remembered(plugin, socket=socket, kubelet=kubelet):
                    pass
            finally:
                self._is_current = False
        _log.info("kubelet forgot resource=%s", self.resource_name)

    @property
    def _kubelet_socket(self) -> Path:
        return self._directory / KUBELET_SOCKET

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[tuple[Plugin, Path]]:
        socket = self._directory / _new_socket_name(self.resource_name)
        plugin = Plugin(self.inventory)
        server = grpc.aio.server()
        rpc.add_DevicePluginServicer_to_server(plugin, server)
        server.add_insecure_port(f"unix:{socket}")
        try:
            await _to_its_end(server.start())
            yield plugin, socket
        finally:
            try:
                await _to_its_end(server.stop(grace=None))
            finally:
                socket.unlink(missing_ok=True)

    async def _register(self, *, endpoint: str) -> None:
        request = pb.RegisterRequest(
            version=API_VERSION, endpoint=endpoint, resource_name=self.resource_name
        )
        async with grpc.aio.insecure_channel(f"unix:{self._kubelet_socket}") as channel:
            await rpc.RegistrationStub(channel).Register(request, timeout=REGISTER_TIMEOUT_S)

    async def _is_remembered(
        self, plugin: Plugin, *, socket: Path, kubelet: _SocketIdentity | None
    ) -> bool:
        """Say, after at most one poll, whether the kubelet still knows this registration."""
        with contextlib.suppress(TimeoutError):
            # Not wait_for: before Python 3.12 it swallows a cancellation that comes with the event.
            async with asyncio.timeout(POLL_S):
                await plugin.forgotten.wait()
            return False
        return _identify(socket) is not None and _identify(self._kubelet_socket) == kubelet

    def _report(self, error: grpc.aio.AioRpcError) -> None:
        """Log a refusal once, not at every retry."""
        refusal = f"{error.code().name}: {error.details()}"
        if refusal != self._last_refusal:
            _log.warning("not registered resource=%s: %s", self.resource_name, refusal)
        self._last_refusal = refusal


async def _to_its_end(step: Awaitable[None]) -> None:
    """Await a step that must not be cut: a cancellation takes effect after it.

    A gRPC server whose start is cancelled answers its stop with InvalidStateError.
    """
    running = asyncio.ensure_future(step)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await running
        raise


def _new_socket_name(resource_name: ResourceName) -> str:
    readable = resource_name.replace("/", "_")[:NAME_LENGTH]
    return f"{readable}-{secrets.token_hex(4)}.sock"


def _identify(path: Path) -> _SocketIdentity | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return _SocketIdentity(found.st_dev, found.st_ino, found.st_ctime_ns)
