# SPDX-License-Identifier: Apache-2.0
"""devicemount.io/v1alpha1: the models that objects are parsed with and that the CRD is generated
from (`api.crd`).

Every list and string has a bound, every field a description (`kubectl explain`). What a schema
cannot say is CEL, in `json_schema_extra`. Unknown fields are the API server's to refuse; here they
are ignored, so that an operator that is older than the CRD still reads its objects.
"""

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

GROUP: Final = "devicemount.io"
VERSION: Final = "v1alpha1"
KIND: Final = "DeviceMount"
PLURAL: Final = "devicemounts"
API_VERSION: Final = f"{GROUP}/{VERSION}"

MAX_RESOURCES = 8  # resource names in one mount
MAX_COUNT = 1 << 20  # of one resource: vendors count memory in devices of 1 MiB
MAX_DEVICES = 512  # that are named; the message says how many there are
MAX_NODES = 64  # device files of one device
MAX_MOUNTS = 64  # other files, directories and links of one device
MAX_FILES = 1024  # all of these together: an object has room for 1.5 MiB
MAX_ANNOTATIONS = 16
MAX_HOLDERS = 32  # processes that are named; the message says how many there are
MAX_SHADOW_PODS = 64
MAX_CONDITIONS = 16
MAX_SELECTED = 32  # target pods of one mount; who needs more makes more mounts
MAX_TARGETS = 64  # rows of status: those, and pods that leave while others come
MAX_REQUIREMENTS = 16  # of a label selector
MAX_LABEL_VALUES = 32
MAX_MESSAGE = 2048  # characters of a sentence with a scheduler's or a policy's text in it
MAX_COMMAND = 256
MAX_NOTE = 256
MAX_LIFETIME = "87600h"  # ten years: who wants longer leaves it out
MAX_GRACE_S = 3600  # who needs longer to save its work waits: the device is revoked meanwhile

_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"

# As Kubernetes has it for a qualified name, less the room that quotas take for "requests.".
_EXTENDED_RESOURCE = (
    "^[a-z0-9]([-a-z0-9.]{0,240}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)

# As Kubernetes has it for a qualified name: of an annotation, of a label.
_QUALIFIED_NAME = (
    "^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
_LABEL_VALUE = "^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
# As Kubernetes writes a duration (gateway-api's GEP-2257): "8h", "1h30m".
_DURATION = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"

_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

_RESERVATION_STAYS = (
    "spec.reservation cannot be changed: delete this DeviceMount and create another one"
)

ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253)]
UID = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Sentence = Annotated[str, StringConstraints(max_length=MAX_MESSAGE)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
AnnotationValue = Annotated[str, StringConstraints(max_length=1024)]
ContainerPath = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Milliseconds = Annotated[float, Field(ge=0)]


def _rule(rule: str, message: str) -> dict[str, str]:
    return {"rule": rule, "message": message}


def _rules(*rules: dict[str, str]) -> dict[str, Any]:
    """Return what pydantic is to put into the schema: CEL rules, and their sentences for people."""
    return {"x-kubernetes-validations": list(rules)}


def _list_map(key: str) -> dict[str, Any]:
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def _in_ones(count: object) -> object:
    """Return a count in thousandths, which Kubernetes may write ("1000m"), without them."""
    return count.removesuffix("000m") if isinstance(count, str) else count


Count = Annotated[
    int,  # "1" and "1000m" as well: quantities may be spelled so, and are stored as they are
    BeforeValidator(_in_ones),
    Field(ge=1, le=MAX_COUNT),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "description": f"How many devices: a whole number from 1 to {MAX_COUNT}.",
        }
    ),
]


def _to_kubernetes(name: str) -> str:
    """Return a field's name as the API spells it: pod_uid -> podUID, node_name -> nodeName."""
    first, *rest = name.split("_")
    return first + "".join(w.upper() if w in ("id", "uid") else w.capitalize() for w in rest)


class _Model(BaseModel):
    """Frozen; speaks Kubernetes' spelling outside and ours inside."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, alias_generator=_to_kubernetes
    )


class LabelRequirement(_Model):
    """One demand on a pod's labels."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            _rule(
                "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                "values are needed with In and NotIn, and forbidden with Exists and DoesNotExist",
            )
        )
    )

    key: LabelKey = Field(
        pattern=_QUALIFIED_NAME,
        description="Key of the label.",
    )
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="In: the label is there and has one of the values. NotIn: it is absent, or has "
        "none of them. Exists, DoesNotExist: it is there, whatever its value, or is not."
    )
    values: tuple[Annotated[LabelValue, StringConstraints(pattern=_LABEL_VALUE)], ...] = Field(
        default=(),
        max_length=MAX_LABEL_VALUES,
        description="For In and NotIn.",
    )


class LabelSelector(_Model):
    """Which pods, as every selector of Kubernetes says it: all demands must be met."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            _rule(
                "has(self.matchLabels) && size(self.matchLabels) > 0 || "
                "has(self.matchExpressions) && size(self.matchExpressions) > 0",
                "an empty selector would select every pod of the namespace: say which are meant",
            )
        )
    )

    match_labels: dict[str, LabelValue] = Field(
        default_factory=dict,
        max_length=MAX_REQUIREMENTS,
        description="Labels that a pod must have, with these values.",
        json_schema_extra=_rules(
            _rule(
                f"self.all(key, size(key) <= 317 && key.matches('{_QUALIFIED_NAME}') && "
                f"self[key].matches('{_LABEL_VALUE}'))",
                "a label is a name with an optional domain before it (domain/name) and a value of "
                "at most 63 letters, digits, '-', '_' and '.'",
            ),
        ),
    )
    match_expressions: tuple[LabelRequirement, ...] = Field(
        default=(),
        max_length=MAX_REQUIREMENTS,
        description="Further demands on a pod's labels.",
    )


class Target(_Model):
    """The containers that get the devices. They run already and are not restarted."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            _rule(
                "has(self.podName) != has(self.selector)",
                "spec.target names one pod by podName or selects pods by selector: one of both",
            ),
            _rule(
                "has(self.selector) || !has(self.maxPods)",
                "spec.target.maxPods belongs to selector: podName is one pod",
            ),
        )
    )

    pod_name: ObjectName | None = Field(
        default=None,
        pattern=_DNS_SUBDOMAIN,
        description="Name of a pod in the same namespace. A pod that is made again under this "
        "name gets its devices again. It may be changed: what the former pod has is given back "
        "first.",
    )
    selector: LabelSelector | None = Field(
        default=None,
        description="Instead of podName: every pod in the same namespace that matches gets devices "
        "of its own, as many as spec.resources says, as pods come and go.",
    )
    max_pods: int = Field(
        default=MAX_SELECTED,
        ge=1,
        le=MAX_SELECTED,
        description="With selector: how many pods get devices at most. Those that have them keep "
        "them, then the oldest get theirs; status says how many are left out. "
        f"Default and maximum: {MAX_SELECTED}.",
    )
    container: Annotated[str, StringConstraints(min_length=1, max_length=63)] | None = Field(
        default=None,
        pattern=_DNS_LABEL,
        description="Name of the container. Default: the one that the pod's annotation "
        "kubectl.kubernetes.io/default-container names, else the pod's only container.",
    )


class Resources(_Model):
    """What to mount, in the shape of a container's resources."""

    limits: dict[str, Count] = Field(
        min_length=1,
        max_length=MAX_RESOURCES,
        description="Extended resources and how many of each, such as nvidia.com/gpu: 1. All of "
        "them are mounted, or none. With a higher count, or another resource, the rest is mounted "
        "beside what is in use; with a lower one, what was mounted together is given back "
        "together, idle devices first.",
        json_schema_extra=_rules(
            _rule(
                f"self.all(name, name.matches('{_EXTENDED_RESOURCE}') && "
                "!name.contains('kubernetes.io/') && !name.startsWith('requests.'))",
                "only extended resources (domain/name, such as nvidia.com/gpu) can be mounted: "
                "remove cpu, memory and other resources that Kubernetes itself provides",
            ),
            _rule(
                "self.all(name, string(self[name]).matches('^[1-9][0-9]{0,6}(000m)?$') && "
                f"int(string(self[name]).replace('000m', '')) <= {MAX_COUNT})",
                f"a count is a whole number from 1 to {MAX_COUNT}: to mount nothing set "
                "spec.suspend or delete the DeviceMount; parts of a device cannot be asked for",
            ),
        ),
    )


class Reservation(_Model):
    """How the shadow pod, which asks scheduler and kubelet for the devices, is placed."""

    model_config = ConfigDict(
        json_schema_extra=_rules(_rule("self == oldSelf", _RESERVATION_STAYS))
    )

    scheduler_name: ObjectName | None = Field(
        default=None,
        pattern=_DNS_SUBDOMAIN,
        description="Scheduler that places the shadow pod. Default: the cluster's default.",
    )
    runtime_class_name: ObjectName | None = Field(
        default=None,
        pattern=_DNS_SUBDOMAIN,
        description="RuntimeClass of the shadow pod, where a vendor's devices need one.",
    )
    priority_class_name: ObjectName | None = Field(
        default=None,
        pattern=_DNS_SUBDOMAIN,
        description="PriorityClass of the shadow pod, never above the target's. Default: the "
        "target's.",
        json_schema_extra=_rules(
            _rule(
                "!self.startsWith('system-')",
                "priority classes of the system are not for shadow pods",
            )
        ),
    )
    annotations: dict[str, AnnotationValue] = Field(
        default_factory=dict,
        max_length=MAX_ANNOTATIONS,
        description="Annotations of the shadow pod, for schedulers that read them. Only keys that "
        "the operator's settings allow.",
        json_schema_extra=_rules(
            _rule(
                "self.all(key, size(key) <= 317 && "
                f"key.matches('{_QUALIFIED_NAME}') && !key.startsWith('devicemount.io/'))",
                "a key of annotations is a name with an optional domain before it "
                "(domain/name), and none of devicemount's own",
            ),
        ),
    )
    accept_env_file: bool = Field(
        default=False,
        description="true: what a vendor passes by environment variables, limits among it, is "
        "written into a file in the container, which programs must read themselves; status names "
        "it. false: resources that need this are refused.",
    )


class Unmount(_Model):
    """How devices are given back."""

    when_busy: Literal["Wait", "Terminate"] = Field(
        default="Wait",
        description="What happens when a process still has a device open. Wait (the default): "
        "nothing is taken away until it has closed it; status names the process. Terminate: the "
        "device is taken away, and the processes of the target pod that have it open are ended, "
        "these and no others. It may be changed at any time, also while a deletion waits.",
    )
    grace_period_seconds: int = Field(
        default=30,
        ge=0,
        le=MAX_GRACE_S,
        description="With Terminate: how long a process has between SIGTERM and SIGKILL. "
        f"Default: 30; at most {MAX_GRACE_S}.",
    )
    include_main_process: bool = Field(
        default=False,
        description="With Terminate: true ends the container's main process too if it has a "
        "device open, which restarts the container. false (the default): it is waited for.",
    )


class Lifetime(_Model):
    """When the mount ends by itself."""

    expire_after: Annotated[str, StringConstraints(max_length=28)] | None = Field(
        default=None,
        pattern=_DURATION,
        description="How long the devices may stay, such as 8h or 1h30m, counted from when the "
        "first of them was mounted (status.lifetime). Then they are given back as spec.unmount "
        "says, and the object stays, Suspended with reason Expired. Any edit of spec.lifetime "
        "counts anew.",
        json_schema_extra=_rules(
            _rule(
                f"duration(self) >= duration('1s') && duration(self) <= duration('{MAX_LIFETIME}')",
                f"a duration from 1s to {MAX_LIFETIME}",
            )
        ),
    )
    delete_with_target: bool = Field(
        default=False,
        description="true deletes this DeviceMount once its target pod, which had the devices, is "
        "gone for good: it does not exist or has ended, and no pod of its name has come within "
        "30 s. A container that restarts and a pod that is made again are not gone.",
    )

    @property
    def expire_after_s(self) -> float | None:
        """Return the duration in seconds."""
        if self.expire_after is None:
            return None
        parts = re.findall(r"([0-9]+)(ms|h|m|s)", self.expire_after)
        return sum(int(count) * _UNITS_S[unit] for count, unit in parts)


class Spec(_Model):
    """What is wanted."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            _rule("has(self.reservation) == has(oldSelf.reservation)", _RESERVATION_STAYS),
            _rule(
                "!has(self.lifetime) || !has(self.lifetime.deleteWithTarget) || "
                "!self.lifetime.deleteWithTarget || has(self.target.podName)",
                "spec.lifetime.deleteWithTarget goes with spec.target.podName only: the pods of a "
                "selector come and go",
            ),
        )
    )

    target: Target = Field(
        description="The containers that get the devices. May be changed: what is no longer "
        "meant gives its devices back as spec.unmount says."
    )
    resources: Resources = Field(
        description="Which devices, and how many. May be changed: what is in use and still wanted "
        "stays as it is."
    )
    reservation: Reservation = Field(
        default_factory=Reservation,
        description="How the reservation is placed. Cannot be changed.",
    )
    unmount: Unmount = Field(default_factory=Unmount, description="How devices are given back.")
    lifetime: Lifetime = Field(
        default_factory=Lifetime, description="When the mount ends by itself."
    )
    suspend: bool = Field(
        default=False,
        description="true gives the devices back and keeps the object; false mounts again.",
    )


class Condition(_Model):
    """One aspect of the mount, as Kubernetes' conventions have it."""

    type: Word = Field(description="Aspect, such as Ready.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it is so.")
    reason: Word = Field(description="Why, in one word; docs/reasons.md explains each.")
    message: Sentence = Field(default="", description="Why, in a sentence, and what to do.")
    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="metadata.generation that this was said of.",
    )
    last_transition_time: datetime | None = Field(
        default=None,
        description="When status last changed from one value to another.",
    )


class Node(_Model):
    """A device file in the target container."""

    path: ContainerPath = Field(description="Path in the container.")
    type: Literal["c", "b"] = Field(description="c: character device, b: block device.")
    major: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(description="Major number.")
    minor: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(description="Minor number.")
    access: Annotated[str, StringConstraints(max_length=3)] = Field(
        description="r: may be read, w: may be written."
    )


class Device(_Model):
    """One device that the kubelet gave to this mount."""

    resource: ObjectName = Field(description="Resource name, such as nvidia.com/gpu.")
    id: ObjectName = Field(description="The device plugin's name for it.")
    health: Literal["Healthy", "Unhealthy", "Unknown"] | None = Field(
        default=None, description="What the kubelet last heard of it from the device plugin."
    )
    nodes: tuple[Node, ...] = Field(
        default=(), max_length=MAX_NODES, description="Its device files in the container."
    )
    mounts: tuple[ContainerPath, ...] = Field(
        default=(),
        max_length=MAX_MOUNTS,
        description="Other files, directories, sockets and links that came with it.",
    )
    env_file: ContainerPath | None = Field(
        default=None,
        description="File in the container with the environment variables that programs need to "
        "use it.",
    )


class Holder(_Model):
    """A process that has a device of this mount open."""

    pid: Annotated[int, Field(ge=0)] = Field(
        description="Process id as the process itself sees it, in its own pid namespace."
    )
    command: Annotated[str, StringConstraints(max_length=MAX_COMMAND)] = Field(
        description="Command line, cut and with control characters escaped."
    )
    pod: ObjectName | None = Field(
        default=None,
        description="Pod of the process: its name, or its UID where only that is known. Absent: a "
        "process of the node itself.",
    )
    container: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        default=None, description="Container of the process: its name, or its id."
    )
    blocking: bool = Field(
        default=True,
        description="false: it had access of its own before this mount and keeps it; it is not "
        "waited for.",
    )
    note: Annotated[str, StringConstraints(min_length=1, max_length=MAX_NOTE)] | None = Field(
        default=None,
        description="What is special about it, such as why it is not ended.",
    )


class Timings(_Model):
    """How long the first mount in this pod took, each since the operator first saw the object."""

    reserved_ms: Milliseconds | None = Field(
        default=None, description="Until the kubelet had chosen the devices."
    )
    granted_ms: Milliseconds | None = Field(
        default=None, description="Until they opened in the container."
    )
    ready_ms: Milliseconds | None = Field(default=None, description="Until Ready was written.")


class TargetStatus(_Model):
    """What is so in one target pod."""

    pod_uid: UID = Field(
        description="UID of the pod; another pod of the same name is another entry."
    )
    pod_name: ObjectName | None = Field(default=None, description="Name of the pod.")
    node_name: ObjectName | None = Field(default=None, description="Its node.")
    container_name: Annotated[str, StringConstraints(min_length=1, max_length=63)] | None = Field(
        default=None, description="The container that was chosen."
    )
    container_id: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="The very container in which the devices were verified.",
    )
    phase: Word | None = Field(
        default=None,
        description="Waiting, Mounted or Releasing: for people; programs read conditions.",
    )
    shadow_pods: tuple[ObjectName, ...] = Field(
        default=(),
        max_length=MAX_SHADOW_PODS,
        description="Pods that hold the reservation.",
    )
    since: datetime | None = Field(
        default=None, description="When the devices were granted to this container."
    )
    devices: tuple[Device, ...] = Field(
        default=(), max_length=MAX_DEVICES, description="What is mounted."
    )
    holders: tuple[Holder, ...] = Field(
        default=(),
        max_length=MAX_HOLDERS,
        description="Processes that have a device open, named when that delays an unmount.",
    )
    timings: Timings | None = Field(default=None, description="How long the mount took.")
    reason: Word | None = Field(
        default=None, description="Why it is so in this pod; docs/reasons.md explains each."
    )
    message: Sentence | None = Field(
        default=None, description="Why, in a sentence, and what to do."
    )


class LifetimeStatus(_Model):
    """What of spec.lifetime is counted, and from when."""

    expire_after: Annotated[str, StringConstraints(max_length=28)] | None = Field(
        default=None, description="spec.lifetime.expireAfter as it is counted."
    )
    delete_with_target: bool = Field(
        default=False, description="spec.lifetime.deleteWithTarget as it is followed."
    )
    since: datetime | None = Field(
        default=None,
        description="Counted from: when the first device was mounted, or spec.lifetime was edited "
        "while one was.",
    )
    expires: datetime | None = Field(default=None, description="When the devices are given back.")
    target: ObjectName | None = Field(
        default=None,
        description="With deleteWithTarget: name of the pod that had the devices last.",
    )
    target_gone: datetime | None = Field(
        default=None, description="When the pod of that name was first found to be gone."
    )


class Status(_Model):
    """What is so."""

    observed_generation: Annotated[int, Field(ge=-1)] = Field(
        default=-1,
        description="metadata.generation that this status speaks of; -1: not looked at yet.",
    )
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=MAX_CONDITIONS,
        description="Ready; Reconciling (it ends by itself) or Stalled (somebody must act); "
        "TargetFound, Reserved, Grafted; Degraded (ready, and yet something is amiss); Suspended.",
        json_schema_extra=_list_map("type"),
    )
    ready: Annotated[str, StringConstraints(max_length=16)] | None = Field(
        default=None, description="In how many of the target pods the devices open, such as 3/5."
    )
    lifetime: LifetimeStatus | None = Field(
        default=None, description="How spec.lifetime is counted; absent where it sets nothing."
    )
    targets: tuple[TargetStatus, ...] = Field(
        default=(),
        max_length=MAX_TARGETS,
        description="One entry for each target pod, and for each that still gives devices back.",
        json_schema_extra=_list_map("podUID"),
    )


class ObjectMeta(_Model):
    """The part of metadata that decisions need. Not part of the CRD's schema."""

    name: str
    namespace: str
    uid: str
    generation: int = 0
    resource_version: str = Field(default="")
    finalizers: tuple[str, ...] = ()
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: datetime | None = Field(default=None)
    deletion_timestamp: datetime | None = Field(default=None)


class DeviceMount(_Model):
    """Gives devices to a container that already runs, and takes them back when it is deleted."""

    metadata: ObjectMeta
    spec: Spec = Field(description="What is wanted.")
    status: Status = Field(default_factory=Status, description="What is so.")
