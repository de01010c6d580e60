# SPDX-License-Identifier: Apache-2.0
"""Answers the kubelet's calls for one resource (device plugin API v1beta1).

The kubelet says nothing about the pod that it allocates for, so nothing here depends on one.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio

from devicemount_node_api import deviceplugin_pb2 as pb
from devicemount_node_api import deviceplugin_pb2_grpc as rpc
from devicemount_plugin.allocation import SamePath, allocation_of
from devicemount_plugin.config import DeviceID
from devicemount_plugin.discovery import Device
from devicemount_plugin.health import Health
from devicemount_plugin.inventory import Inventory, Listing
from devicemount_plugin.preference import prefer

REFRESH_TIMEOUT_S = 5.0  # a driver that hangs must not hold up the kubelet, which waits for ever

_Context = grpc.aio.ServicerContext[object, object]


class Plugin(rpc.DevicePluginServicer):
    """What the kubelet calls for one resource, for the length of one registration."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self.forgotten = asyncio.Event()  # the kubelet has ended its stream

    async def GetDevicePluginOptions(
        self, request: pb.Empty, context: _Context
    ) -> pb.DevicePluginOptions:
        """Offer a preference: any device may be of a NUMA node."""
        return pb.DevicePluginOptions(get_preferred_allocation_available=True)

    async def ListAndWatch(
        self, request: pb.Empty, context: _Context
    ) -> AsyncIterator[pb.ListAndWatchResponse]:
        """Send the full list, once and whenever it changes: each makes the kubelet write a file."""
        try:
            async for listing in self._inventory.listings():
                yield self._to_response(listing)
        finally:
            self.forgotten.set()

    async def Allocate(self, request: pb.AllocateRequest, context: _Context) -> pb.AllocateResponse:
        """Answer with the nodes as they are now, not as they were at the last rescan."""
        try:
            async with asyncio.timeout(REFRESH_TIMEOUT_S):
                await self._inventory.refresh()
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE,
                f"{self._inventory.resource_name}: the node did not answer"
                f" within {REFRESH_TIMEOUT_S} s",
            )
        response = pb.AllocateResponse()
        for container in request.container_requests:
            ids = [DeviceID(one) for one in container.devices_ids]
            devices = [await self._device_of(one, context) for one in ids]
            response.container_responses.append(await self._allocate(devices, context))
        return response

    async def GetPreferredAllocation(
        self, request: pb.PreferredAllocationRequest, context: _Context
    ) -> pb.PreferredAllocationResponse:
        response = pb.PreferredAllocationResponse()
        for container in request.container_requests:
            chosen = prefer(
                [DeviceID(one) for one in container.available_deviceIDs],
                must_include=[DeviceID(one) for one in container.must_include_deviceIDs],
                size=container.allocation_size,
                device_of=self._inventory.device_of,
                numa_node_of=self._inventory.numa_node_of,
            )
            response.container_responses.add(deviceIDs=chosen)
        return response

    async def PreStartContainer(
        self, request: pb.PreStartContainerRequest, context: _Context
    ) -> pb.PreStartContainerResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not among this plugin's options")

    async def _device_of(self, device_id: DeviceID, context: _Context) -> Device:
        state = self._inventory.find(device_id)
        if state is None:
            why = "it is not known"
        elif state.health is Health.UNHEALTHY:
            why = "; ".join(fault.text for fault in state.faults)
        else:
            return state.device
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"{self._inventory.resource_name}: device {device_id} cannot be given away: {why}",
        )

    async def _allocate(
        self, devices: Sequence[Device], context: _Context
    ) -> pb.ContainerAllocateResponse:
        try:
            return allocation_of(self._inventory.resource, devices)
        except SamePath as error:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{self._inventory.resource_name}: two device nodes would be {error.path} in the "
                "container: put {name} into the plugin's containerPath",
            )

    def _to_response(self, listing: Listing) -> pb.ListAndWatchResponse:
        return pb.ListAndWatchResponse(
            devices=[
                pb.Device(ID=device_id, health=health.value, topology=self._topology_of(device_id))
                for device_id, health in listing.items()
            ]
        )

    def _topology_of(self, device_id: DeviceID) -> pb.TopologyInfo | None:
        numa_node = self._inventory.numa_node_of(device_id)
        if numa_node is None:
            return None
        return pb.TopologyInfo(nodes=[pb.NUMANode(ID=numa_node)])
