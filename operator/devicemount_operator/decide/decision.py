# SPDX-License-Identifier: Apache-2.0
"""What a pass is to do, as data: `act` carries the actions out in order and stops at the first
error.

Every action may run twice from any crash point. An error of an action is reported by
`chain.refused`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from devicemount_operator.decide.observation import (
    Concern,
    ContainerID,
    Device,
    Holder,
    NodeName,
    Place,
    PodUID,
    Setback,
)
from devicemount_operator.reasons import Reason


@dataclass(frozen=True, slots=True)
class CreateShadowPod:
    """POST the shadow pod of this ordinal, or of the next one whose name no other pod has."""

    ordinal: int
    resources: Mapping[str, int]  # what is missing of spec.resources, all of it


@dataclass(frozen=True, slots=True, kw_only=True)
class StartApply:
    """Start the agent's part as a task with a deadline; its end queues the key. An earlier one
    ends."""

    place: Place
    container: str
    container_id: ContainerID | None  # a hint
    shadow_uids: tuple[PodUID, ...]  # besides the pod that CreateShadowPod of this decision makes


class RemovePolicy(Enum):
    """How a release treats a process that holds the device."""

    WAIT = "Wait"
    TERMINATE = "Terminate"
    LOST = "Lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Have the agent take these shadow pods' devices from the target, until it says REMOVED."""

    place: Place
    policy: RemovePolicy
    shadow_uids: tuple[PodUID, ...]  # empty: all of the mount in that place
    grace_s: int = 0  # of TERMINATE, between TERM and KILL
    include_main: bool = False  # of TERMINATE: the container's first process may be ended too


class By(Enum):
    """What stands for an agent's word where none is to be had."""

    NODE = "node"  # it is gone for good
    POD = "pod"  # its kubelet said that each of its containers has ended
    ADMINISTRATOR = "administrator"  # somebody answers for it: nothing proves it


@dataclass(frozen=True, slots=True)
class Proof:
    """Why something may be given back without its agent."""

    by: By
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Discharge:
    """Take it that these shadow pods' devices are not used any more: no agent was to be had."""

    place: Place
    shadow_uids: tuple[PodUID, ...]  # empty: all of the mount in that place
    proof: Proof
    devices: tuple[str, ...]  # what they are, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteShadowPod:
    """Delete with grace 0 and a UID precondition; only ever after a Remove or Discharge of it."""

    name: str
    uid: PodUID


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """PUT our finalizer on the DeviceMount."""


@dataclass(frozen=True, slots=True)
class DropFinalizer:
    """Take our finalizer off; the DeviceMount may be gone after it."""


@dataclass(frozen=True, slots=True)
class DeleteMount:
    """Delete the DeviceMount, if it still is what was decided on: it goes with its target."""


Action = (
    CreateShadowPod
    | StartApply
    | Remove
    | Discharge
    | DeleteShadowPod
    | AddFinalizer
    | DropFinalizer
    | DeleteMount
)


class EventType(Enum):
    """The two types that Kubernetes has."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Event:
    """An Event for the DeviceMount's owner."""

    type: EventType
    reason: str
    message: str


class TargetPhase(Enum):
    """status.targets[].phase: derived, for people."""

    WAITING = "Waiting"
    MOUNTED = "Mounted"
    RELEASING = "Releasing"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetReport:
    """One entry of status.targets as it will be true once the actions are done."""

    pod_uid: PodUID
    node: NodeName | None  # None: not scheduled
    container: str | None  # None: not chosen
    container_id: ContainerID | None
    phase: TargetPhase
    shadow_pods: tuple[str, ...]
    devices: tuple[Device, ...] = ()
    holders: tuple[Holder, ...] = ()
    granted_wall: float | None = None
    concerns: tuple[Concern, ...] = ()
    is_reserved: bool = False  # agents have seen all that the kubelet chose, and it is ours still
    is_grafted: bool = False  # all of it opens


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What status is to say; `report.render` makes the document, if it differs at all."""

    reason: Reason
    message: str
    target: TargetReport | None
    unproved: tuple[TargetReport, ...] = ()  # places of which status must keep the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The outcome of one pass."""

    actions: tuple[Action, ...] = ()
    report: Report | None = None  # written after the actions; None: status stays as it is
    events: tuple[Event, ...] = ()  # after the actions, besides those of the report
    requeue_after_s: float | None = (
        None  # look again in that time without being told; None: only when told
    )
    setback: Setback | None = None  # to hand to the next observation of this mount, always

    def remembering(self, unproved: tuple[TargetReport, ...]) -> "Decision":
        """Return the same with a report that keeps these places in status."""
        if self.report is None:
            return self
        return replace(self, report=replace(self.report, unproved=unproved))
