# SPDX-License-Identifier: Apache-2.0
"""Answers the kubelet's calls for one resource (device plugin API v1beta1).

The kubelet says nothing about the pod that it allocates for, so nothing here depends on one.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
import grpc.aio

from devicemount_node_api import deviceplugin_pb2 as pb
from devicemount_node_api import deviceplugin_pb2_grpc as rpc
from devicemount_plugin.config import DeviceID
from devicemount_plugin.inventory import Inventory, Listing

PERMISSIONS = "rw"

_Context = grpc.aio.ServicerContext[object, object]


class Plugin(rpc.DevicePluginServicer):
    """What the kubelet calls for one resource, for the length of one registration."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self.forgotten = asyncio.Event()  # the kubelet has ended its stream

    async def GetDevicePluginOptions(
        self, request: pb.Empty, context: _Context
    ) -> pb.DevicePluginOptions:
        return pb.DevicePluginOptions()

    async def ListAndWatch(
        self, request: pb.Empty, context: _Context
    ) -> AsyncIterator[pb.ListAndWatchResponse]:
        """Send the full list, once and whenever it changes: each makes the kubelet write a file."""
        try:
            async for listing in self._inventory.listings():
                yield _to_response(listing)
        finally:
            self.forgotten.set()

    async def Allocate(self, request: pb.AllocateRequest, context: _Context) -> pb.AllocateResponse:
        response = pb.AllocateResponse()
        for container in request.container_requests:
            paths = [
                await self._path_of(DeviceID(device_id), context)
                for device_id in container.devices_ids
            ]
            response.container_responses.append(_to_container_response(paths))
        return response

    async def GetPreferredAllocation(
        self, request: pb.PreferredAllocationRequest, context: _Context
    ) -> pb.PreferredAllocationResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not among this plugin's options")

    async def PreStartContainer(
        self, request: pb.PreStartContainerRequest, context: _Context
    ) -> pb.PreStartContainerResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not among this plugin's options")

    async def _path_of(self, device_id: DeviceID, context: _Context) -> str:
        device = self._inventory.find(device_id)
        if device is None:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{self._inventory.resource_name}: device {device_id} is not there",
            )
        return device.path


def _to_response(listing: Listing) -> pb.ListAndWatchResponse:
    return pb.ListAndWatchResponse(
        devices=[
            pb.Device(ID=device_id, health=health.value) for device_id, health in listing.items()
        ]
    )


def _to_container_response(paths: Iterable[str]) -> pb.ContainerAllocateResponse:
    """Name each node once: replicas share theirs."""
    return pb.ContainerAllocateResponse(
        devices=[
            pb.DeviceSpec(host_path=path, container_path=path, permissions=PERMISSIONS)
            for path in dict.fromkeys(paths)
        ]
    )
