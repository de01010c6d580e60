# SPDX-License-Identifier: Apache-2.0
"""Whether granted devices work, as far as the node tells: by the kubelet's word (its device
plugin's), and by whether their device files are there.

A resource without any healthy device may be one whose plugin registers anew, as after a restart of
the kubelet: that counts only once it has lasted.
"""

from collections.abc import Iterable, Mapping

from devicemount_agent.allocation.kubelet import Registered
from devicemount_agent.ledger import Grant
from devicemount_agent.model import Concern, Device, DeviceID, Health, ResourceName

NONE_HEALTHY_FOR_S = 1.5  # a plugin of ours is back within 1 s of the kubelet's new socket

REASON = "DeviceUnhealthy"


class DeviceHealth:
    """What the kubelet said last."""

    def __init__(self) -> None:
        self._registered: Registered = {}
        self._empty_since: dict[ResourceName, float] = {}
        self._now_s = 0.0

    def note(self, registered: Registered, *, now_s: float) -> None:
        """Take note of a version of the checkpoint; time is that of any clock that only rises."""
        self._now_s = now_s
        self._registered = registered
        self._empty_since = {
            resource: self._empty_since.get(resource, now_s)
            for resource, healthy in registered.items()
            if not healthy
        }

    def of(self, device: Device) -> Health:
        """Return what the kubelet says of a device; UNKNOWN when its resource has no plugin."""
        healthy = self._registered.get(device.resource)
        if healthy is None:
            return Health.UNKNOWN
        if device.id in healthy:
            return Health.HEALTHY
        empty_since = self._empty_since.get(device.resource)
        if empty_since is not None and self._now_s - empty_since < NONE_HEALTHY_FOR_S:
            return Health.UNKNOWN
        return Health.UNHEALTHY

    def of_all(self, devices: Iterable[Device]) -> Mapping[tuple[ResourceName, DeviceID], Health]:
        return {(device.resource, device.id): self.of(device) for device in devices}

    def concerns(self, grant: Grant) -> tuple[Concern, ...]:
        """Return what is wrong with a grant's devices."""
        if self.is_well(grant):
            return ()
        return tuple(
            Concern(REASON, f"{device.resource} {device.id}: {sentence}")
            for device in grant.devices
            if (sentence := self._sentence(device, grant))
        )

    def is_well(self, grant: Grant) -> bool:
        """Tell whether nothing at all is wrong with a grant's devices. Costs next to nothing."""
        return not grant.withheld and all(
            self.of(device) is not Health.UNHEALTHY for device in grant.devices
        )

    def _sentence(self, device: Device, grant: Grant) -> str:
        gone = ", ".join(n.host_path for n in device.nodes if n.path in grant.withheld)
        if gone:
            return (
                f"{gone} is not there any more, or is another device's: access is withheld until"
                " the device is back and healthy"
            )
        if self.of(device) is Health.UNHEALTHY:
            return "its device plugin says that it is unhealthy: see the plugin's log on the node"
        return ""
