# SPDX-License-Identifier: Apache-2.0
"""The devices of one resource as the kubelet is told of them, and who waits for a change.

A device that was seen once stays in the list, unhealthy while its node is absent: the kubelet's
capacity then says what the node has, and the same id comes back when the device does.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from devicemount_plugin.config import DeviceID, Resource, ResourceName
from devicemount_plugin.discovery import Device, discover
from devicemount_plugin.health import Health, health_of

Listing = Mapping[DeviceID, Health]


class Inventory:
    """All devices of a resource that were seen since the start."""

    def __init__(self, resource: Resource, *, root: Path) -> None:
        self._resource = resource
        self._root = root
        self._devices: dict[DeviceID, Device] = {}
        self._listing: Listing = {}
        self._changed = asyncio.Event()
        self.rescan()

    @property
    def resource_name(self) -> ResourceName:
        return ResourceName(self._resource.name)

    @property
    def listing(self) -> Listing:
        return self._listing

    def rescan(self) -> Listing:
        """Look at the nodes anew, wake who waits if anything changed, return the new listing."""
        self._devices |= discover(self._resource, root=self._root)
        listing = {
            device.id: health_of(device.path, root=self._root) for device in self._devices.values()
        }
        if listing != self._listing:
            self._listing = listing
            self._changed.set()
            self._changed = asyncio.Event()
        return listing

    def find(self, device_id: DeviceID) -> Device | None:
        """Return the device if it is known and its node is there at this moment."""
        device = self._devices.get(device_id)
        if device is None or health_of(device.path, root=self._root) is Health.UNHEALTHY:
            return None
        return device

    async def listings(self) -> AsyncIterator[Listing]:
        """Yield the present listing, then each one that differs from the last."""
        while True:
            changed, listing = self._changed, self._listing
            yield listing
            await changed.wait()
