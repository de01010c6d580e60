# SPDX-License-Identifier: Apache-2.0
"""What one pass knows, frozen: the mount, its target, its shadow pods, what agents said, what
earlier passes left.

`observe` gathers it, `decide` reads nothing else. Two clocks: `now` is monotonic and is what waits
are measured by, `wall` is unix time and only ends up in status. Pods are parsed from JSON in
`pods`, never here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NewType

from devicemount_operator.api.v1alpha1 import DeviceMount, Target
from devicemount_operator.decide.lifetime import is_expired
from devicemount_operator.reasons import Reason

PodUID = NewType("PodUID", str)
NodeName = NewType("NodeName", str)
ContainerID = NewType("ContainerID", str)  # as CRI gives it, without "containerd://"

FINALIZER: Final = "devicemount.io/finalizer"


class ContainerState(Enum):
    """What the target pod's status says of a container."""

    WAITING = "waiting"  # has not started, or will start again
    RUNNING = "running"
    FINISHED = "finished"  # ended, and its restart policy says for good


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetContainer:
    """A container of the target pod."""

    name: str
    state: ContainerState
    container_id: ContainerID | None  # of the running one
    detail: str  # why it waits or how it ended, in the kubelet's words; may be empty


class PodPhase(Enum):
    """`status.phase` of a pod."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """A toleration of a pod; an absent field stays absent."""

    key: str | None
    operator: str | None
    value: str | None
    effect: str | None
    toleration_seconds: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPod:
    """A target pod as read in this pass."""

    name: str
    uid: PodUID  # the node's: of a static pod the API server shows a copy with another one
    api_uid: PodUID  # metadata.uid
    node: NodeName | None  # None: not scheduled
    phase: PodPhase
    deleting: bool
    has_ended: bool  # will not run again, and its kubelet has said that each container has ended
    ended: frozenset[ContainerID]  # containers of which the kubelet has said so
    containers: tuple[TargetContainer, ...]  # regular ones
    others: tuple[TargetContainer, ...]  # init, sidecar, ephemeral: only meant where named
    default_container: str | None  # annotation kubectl.kubernetes.io/default-container
    tolerations: tuple[Toleration, ...]
    priority_class: str | None
    priority: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityClass:
    """The class that spec.reservation names, read only where it names one (`needs_priority`)."""

    name: str
    value: int | None  # None: it does not exist


@dataclass(frozen=True, slots=True)
class TargetAbsent:
    """The API server said in this pass that no pod of that name exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one mount is or was: agents key it by (DeviceMount, target pod)."""

    node: NodeName
    target_uid: PodUID


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowPod:
    """A pod with this mount's label. Only ours are used or deleted; the others take names."""

    name: str
    uid: PodUID
    place: Place  # its node, or before it is scheduled the one that its affinity names
    created: str = ""  # RFC 3339, in UTC: sorts by itself, and outlives the operator, unlike `seen`
    target_name: str = ""  # of the pod that it was made for; empty: it is not recorded any more
    is_ours: bool  # shadow_pod.is_ours
    resources: Mapping[str, int]  # that it asks for: what was missing when it was made
    phase: PodPhase
    deleting: bool
    failure: (
        str  # of a Failed pod, status.reason: "UnexpectedAdmissionError", "Evicted"; else empty
    )
    failure_text: str  # of a Failed pod, status.message
    disruption: str = ""  # who takes it away and why, in the words of condition DisruptionTarget
    scheduled: bool
    scheduler: str  # spec.schedulerName
    scheduler_text: str  # message of PodScheduled=False; empty: no scheduler has complained
    gates: tuple[str, ...]  # names of scheduling gates
    claim: str  # ResourceClaim that serves its devices in a device plugin's place; empty: none
    hold_text: str  # why `hold` does not run, in the kubelet's words; may be empty
    hold_down_since: (
        float | None
    )  # monotonic; scheduled, and `hold` was not seen running since then. None: it runs
    seen: float  # monotonic: when the operator first knew it (its POST's answer or the watch)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node, read only where its agent is absent or a scheduler complains (`needs_node`)."""

    name: NodeName
    is_enabled: bool  # has the label that lends it to devicemount
    is_deleted: bool = False  # the API server knows no such node (any more)
    is_out_of_service: bool = False  # an administrator says that it is down, by that taint
    leaving: str = ""  # why nothing new belongs there, as a predicate; empty: it may come
    allocatable: Mapping[
        str, int
    ]  # extended resources; one that is not named is unknown to the node


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceFacts:
    """What a node's profiles and its device plugin say of a resource."""

    resource: str
    serialised: bool  # its plugin guesses whose call it is: one attach at a time on the node
    env_only: str  # what only the environment limits; empty: nothing
    refused: str  # why the profile refuses it by name; empty: it does not
    driver_missing: str  # what the device plugin does not find; empty: nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Where a mount of a serialised resource stands among those that want it on the node."""

    ahead: str  # what is waited for; empty: it is this mount's turn
    since: float  # monotonic: waited since
    is_awaited: bool  # others wait for what this mount has or is about to have


class GrantPhase(Enum):
    """What an agent says of one shadow pod of a mount."""

    WAITING = "Waiting"
    GRANTED = "Granted"
    BUSY = "Busy"  # asked to release, a process holds a device; see is_granted
    LOST = "Lost"  # revoked since its reservation is gone
    REMOVED = "Removed"
    TARGET_ENDED = "TargetEnded"  # was granted to a container that has ended


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    """A device file in the target container."""

    path: str
    type: str  # "c" or "b"
    major: int
    minor: int
    access: str  # of "r", "w"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What the kubelet gave under one id."""

    resource: str
    id: str
    nodes: tuple[DeviceNode, ...]
    mounts: tuple[str, ...] = ()  # what else came with it: paths in the container
    env_file: str = ""  # path in the container; empty: it needs no environment
    health: str = ""  # Healthy, Unhealthy or Unknown; empty: the agent does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """The devices open, and yet something is amiss."""

    reason: str  # an agent's word: newer ones may have others than the table
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that has a device of ours open."""

    pid: int  # in its own pid namespace
    command: str
    pod_uid: str  # empty: a process of the host
    container_id: str
    blocking: bool  # False: it had access of its own before us and keeps it
    note: str = ""  # what is special about it, in the agent's words
    container: str = ""  # names, where the runtime told them to the agent
    pod_name: str = ""
    pod_namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The last thing that an agent said of one shadow pod of this mount."""

    shadow_uid: PodUID
    shadow_name: str
    place: Place
    phase: GrantPhase
    devices: tuple[Device, ...]
    holders: tuple[Holder, ...]
    holders_total: int
    container_id: ContainerID | None
    container: str = ""  # that it was granted to: its name; empty: the agent is too old to say
    granted_wall: float | None  # unix seconds; None: nothing is granted
    concerns: tuple[Concern, ...] = ()
    repairs: int = 0  # how often its agent gave access again that somebody had taken
    restarts: int = 0  # how often it was granted again to the container's next run
    lost: Concern | None = None  # why, where the phase is LOST
    incomplete: bool = False  # of the last Apply something is missing: the container is not told
    timings_ms: Mapping[str, float]  # agent's step -> milliseconds after it received Apply


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an action or an Apply did not succeed, as a reason of the table."""

    reason: Reason
    message: str  # what the other side said; report makes the sentence
    at: float  # monotonic
    holders: tuple[Holder, ...] = ()
    holders_total: int = 0
    is_revoked: bool = False  # nobody can open it any more; holders are being ended, if any may be


@dataclass(frozen=True, slots=True)
class Silence:
    """Requests to an agent that nobody answered, in a row."""

    since: float  # monotonic: of the first
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """What the operator knows from node agents about this mount."""

    nodes: frozenset[NodeName] = frozenset()  # that have an agent with an address now
    grants: tuple[
        Grant, ...
    ] = ()  # every shadow pod of this mount that an agent speaks of, on any node
    released: frozenset[PodUID] = frozenset()  # shadow pods for which a Remove was answered REMOVED
    asked: frozenset[PodUID] = frozenset()  # shadow pods of the last Apply
    asked_at: float | None = None  # monotonic: when it was sent
    applying: frozenset[PodUID] = frozenset()  # shadow pods of the Apply in flight
    container: str | None = None  # that the last Apply named
    asked_for: Target | None = None  # spec.target when it was sent
    refusal: Refusal | None = (
        None  # how the last Apply ended, if not granted; None while one is in flight
    )
    unanswered: Mapping[NodeName, Silence] = field(
        default_factory=dict
    )  # agents that were asked to give something of this mount back, in vain
    ended: Mapping[PodUID, float] = field(
        default_factory=dict
    )  # monotonic, by shadow pod: since when the container that it was granted to has ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """Attempts that failed in a row. Each pass gets what the last Decision said."""

    reason: Reason
    message: str
    count: int
    generation: int  # of the DeviceMount; an edit is tried at once
    at: float  # monotonic: of the last failure
    until: float  # monotonic: nothing is reserved or applied before


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestones:
    """Monotonic times for status.targets[].timings. None: not in this operator's life."""

    seen: float | None = None  # the DeviceMount's first event
    applied: float | None = None  # Apply was sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything that one decision depends on, which is about one target pod (`split`)."""

    mount: DeviceMount  # with several target pods: its status speaks of this one alone
    pod_name: str  # of the target pod; empty: a selector matches none
    leaving: str = ""  # why it is no target any more; empty: it is one
    after: tuple[str, ...] = ()  # pods that give back what they have before this one gets anything
    target: TargetPod | TargetAbsent | None  # None: not read in this pass (`needs_target`)
    last: TargetPod | None  # of a target pod that is gone, its last object; None: nobody saw it
    shadows: tuple[ShadowPod, ...]
    node: NodeView | None  # None: not read in this pass (`needs_node`)
    facts: tuple[ResourceFacts, ...] | None  # None: not asked for in this pass (`needs_facts`)
    turn: Turn | None  # None: nothing serialised is wanted in this pass (`serialised`)
    priority_class: PriorityClass | None  # None: not read in this pass (`needs_priority`)
    allowed_annotations: frozenset[str]  # keys that spec.reservation may have: a setting
    agent: AgentView
    setback: Setback | None
    milestones: Milestones
    now: float  # monotonic seconds
    wall: float  # unix seconds
    steady: float  # the same, but for what a step of the clock has added: what expiry uses

    @property
    def ours(self) -> tuple[ShadowPod, ...]:
        """Return the shadow pods that we made, dead or alive."""
        return tuple(shadow for shadow in self.shadows if shadow.is_ours)

    @property
    def standing(self) -> tuple[ShadowPod, ...]:
        """Return the shadow pods that make up the reservation, the oldest first: ours, alive, not
        given back."""
        live = (s for s in self.ours if not is_ending(s) and not self.is_released(s))
        return tuple(sorted(live, key=lambda s: (s.created, s.seen, s.name)))

    @property
    def granted(self) -> tuple[ShadowPod, ...]:
        """Return those whose devices open in the target now."""
        return tuple(s for s in self.standing if is_granted(self.grant_of(s)))

    def grant_of(self, shadow: ShadowPod) -> Grant | None:
        """Return what an agent says of this very shadow pod."""
        return next((g for g in self.agent.grants if g.shadow_uid == shadow.uid), None)

    def is_released(self, shadow: ShadowPod) -> bool:
        """Say whether an agent has proved that nothing of this shadow pod can be used any more."""
        grant = self.grant_of(shadow)
        removed = grant is not None and grant.phase is GrantPhase.REMOVED
        return removed or shadow.uid in self.agent.released

    @property
    def held_back_s(self) -> float:
        """Return for how long nothing may be reserved or applied yet, after setbacks."""
        if self.setback is None or self.setback.generation != self.mount.metadata.generation:
            return 0.0
        return max(0.0, self.setback.until - self.now)


def is_unwanted(observation: Observation) -> bool:
    """Say whether the target pod is to have no devices: it is none any more, or the mount is being
    deleted, suspended or expired."""
    mount = observation.mount
    if observation.leaving:
        return True
    is_deleted = mount.metadata.deletion_timestamp is not None
    return is_deleted or mount.spec.suspend or is_expired(mount, steady=observation.steady)


def is_ending(shadow: ShadowPod) -> bool:
    """Say whether the kubelet will take the device from it, or has."""
    return shadow.deleting or shadow.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)


def is_placed(observation: Observation, shadow: ShadowPod) -> bool:
    """Say whether the shadow pod has its node: it says so, or the agent that names its devices.

    The watch can be late by more than a minute, and what is granted is never taken for unplaced.
    """
    grant = observation.grant_of(shadow)
    return shadow.scheduled or (grant is not None and bool(grant.devices))


def holds(grant: Grant | None) -> bool:
    """Say whether devices are the mount's by this grant, open in the target or not (yet)."""
    gone = (GrantPhase.LOST, GrantPhase.REMOVED)
    return grant is not None and bool(grant.devices) and grant.phase not in gone


def is_granted(grant: Grant | None) -> bool:
    """Say whether the devices open in the target now: not where holders are being ended."""
    if grant is None:
        return False
    waits = grant.phase is GrantPhase.BUSY and grant.granted_wall is not None
    return waits or grant.phase is GrantPhase.GRANTED


def choice(target: Target, pod: TargetPod) -> TargetContainer | None:
    """Return the container that is meant: the named, the default, the only one; else None."""
    only = pod.containers[0].name if len(pod.containers) == 1 else None
    wanted = target.container or pod.default_container or only
    among = (*pod.containers, *pod.others) if target.container else pod.containers
    return next((container for container in among if container.name == wanted), None)


def name_of(observation: Observation, pod_uid: PodUID) -> str | None:
    """Return the name of that target pod, a former one's too, as well as it can be told."""
    pod = observation.target
    if isinstance(pod, TargetPod) and pod.uid == pod_uid:
        return pod.name
    shadows = (s.target_name for s in observation.shadows if s.place.target_uid == pod_uid)
    rows = (row.pod_name for row in observation.mount.status.targets if row.pod_uid == pod_uid)
    return next(filter(None, (*shadows, *rows, observation.pod_name)), None)


def known_container(observation: Observation, pod_uid: PodUID) -> str | None:
    """Return the name of the container that has the devices, or is to have them, in that pod."""
    if (granted := _granted_container(observation, pod_uid)) is not None:
        return granted
    target, pod = observation.mount.spec.target, observation.target
    if target.container is not None:
        return target.container
    if isinstance(pod, TargetPod) and pod.uid == pod_uid:
        container = choice(target, pod)
        return container.name if container else None
    if observation.agent.container is not None:
        return observation.agent.container
    return _written_container(observation, pod_uid)


def container_of(observation: Observation, grant: Grant) -> str | None:
    """Return the name of the container that a grant was made to, as well as it can be told."""
    if grant.container:
        return grant.container
    return observation.agent.container or _written_container(observation, grant.place.target_uid)


def _granted_container(observation: Observation, pod_uid: PodUID) -> str | None:
    """Ask the grants: an edit of spec.target moves nothing by itself."""
    holding = (g for g in observation.agent.grants if g.place.target_uid == pod_uid and holds(g))
    return next((grant.container for grant in holding if grant.container), None)


def _written_container(observation: Observation, pod_uid: PodUID) -> str | None:
    rows = observation.mount.status.targets
    return next((row.container_name for row in rows if row.pod_uid == pod_uid), None)
