# SPDX-License-Identifier: Apache-2.0
"""What the operator asks for, after its shape was checked: who, which shadow pods, in which order.

Requests of one mount are ordered by (epoch, revision). The epoch belongs to a leader of the
operator and fences all of its predecessors at once; the revision counts within it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from devicemount_agent.model import ContainerID, MountUID, PodUID, ResourceName


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """One leadership of the operator: ordered by its Lease's creation, then by its transitions."""

    lease_created_ns: int
    transitions: int
    lease_uid: str = field(compare=False)


@dataclass(frozen=True, slots=True, order=True)
class Order:
    """The place of a request among all requests of its mount."""

    epoch: Epoch
    revision: int


@dataclass(frozen=True, slots=True)
class MountKey:
    """A mount is one DeviceMount in one target pod."""

    mount_uid: MountUID
    pod_uid: PodUID

    def __str__(self) -> str:
        return f"{self.mount_uid}/{self.pod_uid}"

    def names(self, shadow_name: str) -> bool:
        """Tell whether a shadow pod's name is one of this mount."""
        prefix = f"dm-{self.mount_uid[:8]}-{self.pod_uid[:8]}-"
        ordinal = shadow_name.removeprefix(prefix)
        return shadow_name.startswith(prefix) and ordinal.isascii() and ordinal.isdecimal()


@dataclass(frozen=True, slots=True)
class Target:
    """The container that gets the devices, in the pod that the key names."""

    namespace: str
    pod_name: str
    container: str


@dataclass(frozen=True, slots=True)
class ShadowPod:
    """The pod that reserves the devices."""

    uid: PodUID
    name: str


class Policy(Enum):
    """What `Remove` does about processes that hold a device."""

    WAIT = "wait"  # they keep it and nothing changes
    TERMINATE = "terminate"  # those in the target pod are ended, and nobody else
    LOST = "lost"  # the device is going to be another's: they are killed


@dataclass(frozen=True, slots=True)
class ApplyRequest:
    key: MountKey
    order: Order
    mount_name: str
    target: Target
    container_hint: ContainerID | None  # saves a call to the runtime; proven like any other
    shadow_pods: Mapping[ShadowPod, Mapping[ResourceName, int]]
    accept_env_file: bool


@dataclass(frozen=True, slots=True)
class RemoveRequest:
    key: MountKey
    order: Order
    shadow_uids: frozenset[PodUID]  # empty: all of the mount
    policy: Policy
    grace_s: int = 0  # of TERMINATE: between TERM and KILL
    include_main_process: bool = False  # of TERMINATE: the containers' first processes, too

    def concerns(self, shadow: ShadowPod) -> bool:
        """Tell whether that shadow pod's grant is to be removed."""
        return not self.shadow_uids or shadow.uid in self.shadow_uids
