# SPDX-License-Identifier: Apache-2.0
"""Keeps one resource registered with the kubelet, whatever becomes of the kubelet.

Order matters: listen first, then register, since the kubelet dials back inside Register. Each
registration has a socket of a new name: since 1.37 the kubelet refuses one whose old stream it
has not yet seen end. A kubelet that starts removes all sockets here; that, a new kubelet.sock, or
the end of its stream says that it has forgotten us.
"""

import asyncio
import contextlib
import errno
import logging
import re
import secrets
import socket
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


class NotRegistered(Exception):
    """It cannot be registered now; the text says why, for the administrator."""


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
        self._own = re.compile(rf"{re.escape(_prefix(self.resource_name))}-[0-9a-f]{{8}}\.sock")
        self._is_current = False
        self._refusal = ""
        self.count = 0  # how often the kubelet has accepted it

    @property
    def resource_name(self) -> ResourceName:
        return self.inventory.resource_name

    def is_current(self) -> bool:
        """Whether the kubelet has accepted it and, as far as we know, has not forgotten it."""
        return self._is_current

    @property
    def refusal(self) -> str:
        """Say why the last attempt failed; empty: it has not."""
        return self._refusal

    async def keep(self) -> Never:
        """Serve and register, again and again as kubelets come and go."""
        while True:
            try:
                await self._register_once()
            except grpc.aio.AioRpcError as error:
                self._report(f"{error.code().name}: {error.details()}")
            except (NotRegistered, OSError) as error:
                self._report(str(error))
            else:
                continue
            await asyncio.sleep(RETRY_S)

    async def _register_once(self) -> None:
        """Return when the kubelet has forgotten us.

        Raise AioRpcError if it refuses, NotRegistered or OSError if it cannot be asked.
        """
        kubelet = self._find_kubelet()
        self._remove_dead_sockets()
        async with self._listening() as (plugin, own):
            await self._register(endpoint=own.name)
            self._is_current, self._refusal = True, ""
            self.count += 1
            _log.info(
                "registered resource=%s devices=%d",
                self.resource_name,
                len(self.inventory.listing),
            )
            try:
                while await self._is_remembered(plugin, own=own, kubelet=kubelet):
                    pass
            finally:
                self._is_current = False
        _log.info("kubelet forgot resource=%s", self.resource_name)

    @property
    def _kubelet_socket(self) -> Path:
        return self._directory / KUBELET_SOCKET

    def _find_kubelet(self) -> _SocketIdentity:
        kubelet = _identify(self._kubelet_socket)
        if kubelet is None:
            raise NotRegistered(
                f"no {KUBELET_SOCKET} in {self._directory}: the kubelet's socket belongs there; if"
                " it is elsewhere on this node, correct hostPath of the volume device-plugins of"
                " the plugin's DaemonSet; if its directory was made anew, delete this pod"
            )
        return kubelet

    def _remove_dead_sockets(self) -> None:
        """Remove what a plugin that was killed has left of this resource."""
        for path in self._directory.iterdir():
            if self._own.fullmatch(path.name) and _is_dead(path):
                path.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[tuple[Plugin, Path]]:
        own = self._directory / _new_socket_name(self.resource_name)
        plugin = Plugin(self.inventory)
        server = grpc.aio.server()
        rpc.add_DevicePluginServicer_to_server(plugin, server)
        try:
            _try_to_bind(own)
            server.add_insecure_port(f"unix:{own}")
        except (OSError, RuntimeError) as error:  # gRPC knows RuntimeError only
            raise NotRegistered(f"cannot listen in {self._directory}: {error}") from error
        try:
            await _to_its_end(server.start())
            yield plugin, own
        finally:
            try:
                await _to_its_end(server.stop(grace=None))
            finally:
                own.unlink(missing_ok=True)

    async def _register(self, *, endpoint: str) -> None:
        request = pb.RegisterRequest(
            version=API_VERSION, endpoint=endpoint, resource_name=self.resource_name
        )
        async with grpc.aio.insecure_channel(f"unix:{self._kubelet_socket}") as channel:
            await rpc.RegistrationStub(channel).Register(request, timeout=REGISTER_TIMEOUT_S)

    async def _is_remembered(self, plugin: Plugin, *, own: Path, kubelet: _SocketIdentity) -> bool:
        """Say, after at most one poll, whether the kubelet still knows this registration."""
        with contextlib.suppress(TimeoutError):
            # Not wait_for: before Python 3.12 it swallows a cancellation that comes with the event.
            async with asyncio.timeout(POLL_S):
                await plugin.forgotten.wait()
            return False
        return _identify(own) is not None and _identify(self._kubelet_socket) == kubelet

    def _report(self, refusal: str) -> None:
        """Log a refusal once, not at every retry, whose socket has another name."""
        refusal = self._own.sub("*.sock", refusal)
        if refusal != self._refusal:
            _log.warning("not registered resource=%s: %s", self.resource_name, refusal)
        self._refusal = refusal


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
    return f"{_prefix(resource_name)}-{secrets.token_hex(4)}.sock"


def _prefix(resource_name: ResourceName) -> str:
    return resource_name.replace("/", "_")[:NAME_LENGTH]


def _is_dead(path: Path) -> bool:
    """Whether nobody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0)
        return client.connect_ex(str(path)) == errno.ECONNREFUSED


def _try_to_bind(path: Path) -> None:
    """Raise OSError for what gRPC refuses without telling why."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.unlink()


def _identify(path: Path) -> _SocketIdentity | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return _SocketIdentity(found.st_dev, found.st_ino, found.st_ctime_ns)
