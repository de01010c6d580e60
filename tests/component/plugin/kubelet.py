# SPDX-License-Identifier: Apache-2.0
"""The kubelet's side of the device plugin API over real unix sockets, as 1.37 behaves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio

from devicemount_node_api import deviceplugin_pb2 as pb
from devicemount_node_api import deviceplugin_pb2_grpc as rpc

DEADLINE_S = 5.0


async def wait_until(condition: Callable[[], object], *, what: str) -> None:
    """Return as soon as `condition` is true; fail the test after the deadline."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - it is about anything observable
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S} s: {what}") from None


class Kubelet(rpc.RegistrationServicer):
    """One life of a kubelet: what registered with it and what it was told."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._streams: dict[str, asyncio.Task[None]] = {}
        self.endpoints: dict[str, str] = {}  # resource -> file name of its latest socket
        self.listings: dict[str, list[dict[str, str]]] = {}  # resource -> every list that it sent
        self.numa_nodes: dict[str, dict[str, list[int]]] = {}  # resource -> id -> NUMA nodes
        self.options: dict[str, pb.DevicePluginOptions] = {}
        self.refuse_with: str | None = None

    async def Register(
        self, request: pb.RegisterRequest, context: grpc.aio.ServicerContext
    ) -> pb.Empty:
        if self.refuse_with is not None:
            await context.abort(grpc.StatusCode.UNKNOWN, self.refuse_with)
        if request.version != "v1beta1":
            await context.abort(grpc.StatusCode.UNKNOWN, f"unsupported version {request.version}")
        if request.endpoint in self.endpoints.values():
            await context.abort(grpc.StatusCode.UNKNOWN, "device plugin already connected")
        async with self.dial(request.endpoint) as plugin:  # inside Register, as the kubelet does
            options = await plugin.GetDevicePluginOptions(pb.Empty(), timeout=DEADLINE_S)
        self.options[request.resource_name] = options
        self.endpoints[request.resource_name] = request.endpoint
        self.listings[request.resource_name] = []
        self._streams[request.resource_name] = asyncio.create_task(self._watch(request))
        return pb.Empty()

    @asynccontextmanager
    async def dial(self, endpoint: str) -> AsyncIterator[rpc.DevicePluginStub]:
        async with grpc.aio.insecure_channel(f"unix:{self._directory / endpoint}") as channel:
            yield rpc.DevicePluginStub(channel)

    async def _watch(self, request: pb.RegisterRequest) -> None:
        async with self.dial(request.endpoint) as plugin:
            async for response in plugin.ListAndWatch(pb.Empty()):
                self.listings[request.resource_name].append(
                    {device.ID: device.health for device in response.devices}
                )
                self.numa_nodes[request.resource_name] = {
                    device.ID: [node.ID for node in device.topology.nodes]
                    for device in response.devices
                }

    async def allocate(self, resource: str, *containers: list[str]) -> pb.AllocateResponse:
        requests = [pb.ContainerAllocateRequest(devices_ids=ids) for ids in containers]
        async with self.dial(self.endpoints[resource]) as plugin:
            return await plugin.Allocate(
                pb.AllocateRequest(container_requests=requests), timeout=DEADLINE_S
            )

    async def prefer(
        self, resource: str, available: list[str], *, must: list[str], size: int
    ) -> list[str]:
        wish = pb.ContainerPreferredAllocationRequest(
            available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
        )
        async with self.dial(self.endpoints[resource]) as plugin:
            response = await plugin.GetPreferredAllocation(
                pb.PreferredAllocationRequest(container_requests=[wish]), timeout=DEADLINE_S
            )
        (container,) = response.container_responses
        return list(container.deviceIDs)

    async def drop(self, resource: str) -> None:
        """End the stream of a resource, as when the kubelet loses it."""
        await _end(self._streams.pop(resource))

    async def end_streams(self) -> None:
        for task in self._streams.values():
            await _end(task)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


@asynccontextmanager
async def running_kubelet(directory: Path) -> AsyncIterator[Kubelet]:
    """Remove all sockets, then listen: what a kubelet does at its start."""
    for socket in directory.glob("*.sock"):
        socket.unlink()
    kubelet = Kubelet(directory)
    server = grpc.aio.server()
    rpc.add_RegistrationServicer_to_server(kubelet, server)
    server.add_insecure_port(f"unix:{directory / 'kubelet.sock'}")
    await server.start()
    try:
        yield kubelet
    finally:
        await kubelet.end_streams()
        await server.stop(grace=None)
