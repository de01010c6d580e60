# SPDX-License-Identifier: Apache-2.0
"""What the agent says of a mount: a picture of one moment, of grants and what is under way."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from devicemount_agent.model import (
    Concern,
    ContainerID,
    Device,
    DeviceID,
    Health,
    Holder,
    PodUID,
    ResourceName,
)
from devicemount_agent.requests import MountKey


class Phase(IntEnum):
    """What a shadow pod's devices are in the target; a mount's is the least of its shadow pods'."""

    WAITING = 1  # for the kubelet's choice or for the container
    LOST = 2  # revoked, since the reservation is gone
    TARGET_ENDED = 3  # were granted to a container that has ended
    BUSY = 4  # asked to be released, but held; still granted
    GRANTED = 5  # verified inside the current container
    REMOVED = 6  # nothing is left


@dataclass(frozen=True, slots=True)
class ShadowState:
    uid: PodUID
    name: str
    phase: Phase
    devices: tuple[Device, ...] = ()
    holders: tuple[Holder, ...] = ()
    env_file: str = ""  # path in the container; empty: there is none
    health: Mapping[tuple[ResourceName, DeviceID], Health] = field(default_factory=dict)
    concerns: tuple[Concern, ...] = ()
    repairs: int = 0  # how often access was given again that somebody had taken
    restarts: int = 0  # how often it was granted again to the container's next run
    lost: Concern | None = None  # why, where the phase is LOST
    container: str = ""  # that it was granted to: its name
    granted_unix_ns: int = 0  # in the current container; 0: it is not


@dataclass(frozen=True, slots=True)
class MountState:
    key: MountKey
    shadow_pods: tuple[ShadowState, ...]
    container_id: ContainerID | None = None
    granted_unix_ns: int = 0  # of the latest grant in the current container; 0: there is none
    timings_us: Mapping[str, int] = field(default_factory=dict)
    is_incomplete: bool = False  # see Shown.is_incomplete

    @property
    def phase(self) -> Phase:
        return least(shadow.phase for shadow in self.shadow_pods)


def least(phases: Iterable[Phase]) -> Phase:
    """Return what may be said of all of them together."""
    return min(phases, default=Phase.REMOVED)
