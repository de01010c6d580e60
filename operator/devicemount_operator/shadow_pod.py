# SPDX-License-Identifier: Apache-2.0
"""The shadow pod: an ordinary pod that asks scheduler and kubelet for the devices, on the target's
node.

Pure. It stands in the tenant's namespace, so quota, limits and policies hold for it, and passes Pod
Security `restricted`. Nothing of the DeviceMount's labels and annotations is copied: Argo CD and
Flux would adopt or prune it. Its only process is the fence (`hold`): a deletion by others leaves
the device allocated until the agent has revoked.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from pydantic import PositiveInt, TypeAdapter, ValidationError

from devicemount_operator import sizes
from devicemount_operator.api.v1alpha1 import API_VERSION, KIND, DeviceMount, Reservation
from devicemount_operator.decide.observation import (
    NodeName,
    PodUID,
    PriorityClass,
    TargetPod,
    Toleration,
)
from devicemount_operator.sizes import Sizes

Json = Mapping[str, Any]

_COUNTS: Final = TypeAdapter(dict[str, PositiveInt])

CONTAINER: Final = "hold"
COMMAND: Final = ("/hold",)
FENCE_S: Final = 60  # what a deletion by others leaves the agent to revoke and to end holders
MAX_ORDINALS: Final = 64
LABEL: Final = "devicemount.io/shadow"
MOUNT_ANNOTATION: Final = "devicemount.io/mount"
TARGET_ANNOTATION: Final = "devicemount.io/target-uid"
RESOURCES_ANNOTATION: Final = "devicemount.io/resources"  # what we asked for; webhooks may add more


def name(mount: DeviceMount, *, target_uid: PodUID, ordinal: int) -> str:
    """Return the deterministic name: a second create of the same pod is refused, not doubled."""
    return f"dm-{mount.metadata.uid[:8]}-{target_uid[:8]}-{ordinal}"


def build(
    mount: DeviceMount,
    *,
    target: TargetPod,
    ordinal: int,
    resources: Mapping[str, int],
    image: str,
    pull_secret: str = "",
    priority_class: PriorityClass | None = None,
    has: Sizes = sizes.DEFAULT,
) -> dict[str, Any]:
    """Return the pod to post, for these of the mount's resources.

    The target has a node; the class is the one that the mount names.
    """
    if target.node is None:
        raise ValueError(f"target pod {target.name} has no node")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name(mount, target_uid=target.uid, ordinal=ordinal),
            "namespace": mount.metadata.namespace,
            "labels": {
                "app.kubernetes.io/name": "devicemount",
                "app.kubernetes.io/component": "shadow",
                LABEL: mount.metadata.uid,
            },
            "annotations": {
                **mount.spec.reservation.annotations,
                MOUNT_ANNOTATION: mount.metadata.name,
                TARGET_ANNOTATION: target.uid,
                RESOURCES_ANNOTATION: json.dumps(dict(resources), sort_keys=True),
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
            },
            "ownerReferences": _owners(mount, target),
        },
        "spec": {
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": FENCE_S,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "affinity": _only_on(target.node),
            "tolerations": _tolerations(target),
            **_placement(mount.spec.reservation),
            **_priority(target, priority_class),
            **({"imagePullSecrets": [{"name": pull_secret}]} if pull_secret else {}),
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_hold(resources, image, has)],
        },
    }


def is_ours(pod: Json, *, mount: DeviceMount, image: str) -> bool:
    """Say whether we made this pod for this mount, with whatever version of the image.

    Judged by what nobody may change: owner, label, annotations, image, command, grace. What others
    add on the way in (sidecars, gates, finalizers, annotations, another registry, tolerations) is
    no reason to doubt it, and neither is an upgrade since.
    """
    meta, spec = pod["metadata"], pod["spec"]
    annotations = meta.get("annotations") or {}
    target_uid = annotations.get(TARGET_ANNOTATION) or ""
    hold = _hold_of(pod)
    prefix = name(mount, target_uid=PodUID(target_uid), ordinal=0).removesuffix("0")
    return (
        bool(target_uid)
        and meta["name"].startswith(prefix)
        and meta["name"].removeprefix(prefix).isdecimal()
        and (meta.get("labels") or {}).get(LABEL) == mount.metadata.uid
        and annotations.get(MOUNT_ANNOTATION) == mount.metadata.name
        and _is_owned(meta.get("ownerReferences") or (), mount, target_uid=target_uid)
        and spec.get("terminationGracePeriodSeconds") == FENCE_S
        and tuple(hold.get("command") or ()) == COMMAND
        and not hold.get("args")
        and _program(hold.get("image", "")) == _program(image)
    )


def is_adoptable(pod: Json, *, mount: DeviceMount, image: str) -> bool:
    """Say whether a pod that stands where a new one was to be made can serve in its place."""
    same_image = _last_component(_hold_of(pod).get("image", "")) == _last_component(image)
    is_controlled = bool(_controllers(pod["metadata"].get("ownerReferences") or ()))
    return same_image and is_controlled and is_ours(pod, mount=mount, image=image)


def node_of(pod: Json) -> NodeName:
    """Return the node that a shadow pod is on or meant for; "" if it names none."""
    if assigned := pod["spec"].get("nodeName"):
        return NodeName(assigned)
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and field.get("values"):
                return NodeName(field["values"][0])
    return NodeName("")


def target_uid_of(pod: Json) -> PodUID:
    """Return the UID of the target pod that a shadow pod was made for; "" if it names none."""
    return PodUID((pod["metadata"].get("annotations") or {}).get(TARGET_ANNOTATION) or "")


def target_name_of(pod: Json) -> str:
    """Return the name of the target pod that a shadow pod was made for, from its owners; "" if
    garbage collection has taken it off."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return next((str(owner["name"]) for owner in owners if owner.get("kind") == "Pod"), "")


def resources_of(pod: Json) -> frozenset[str]:
    """Return the extended resources that a shadow pod asks for."""
    limits = (_hold_of(pod).get("resources") or {}).get("limits") or {}
    return frozenset(resource for resource in limits if "/" in resource)


def counts_of(pod: Json) -> Mapping[str, int]:
    """Return how many devices of which extended resource we asked for by a shadow pod."""
    said = (pod["metadata"].get("annotations") or {}).get(RESOURCES_ANNOTATION, "")
    with suppress(ValidationError):
        return _COUNTS.validate_json(said)
    return requests_of(pod)  # of an earlier version


def requests_of(pod: Json) -> Mapping[str, int]:
    """Return how many devices of which extended resource a shadow pod asks for now."""
    limits = (_hold_of(pod).get("resources") or {}).get("limits") or {}
    return {name: int(n) for name, n in limits.items() if "/" in name and str(n).isdecimal()}


def ordinal_of(pod_name: str) -> int | None:
    """Return a shadow pod's ordinal, or None for a name that is not made by `name`."""
    last = pod_name.rpartition("-")[2]
    return int(last) if last.isdecimal() and last.isascii() else None


def _owners(mount: DeviceMount, target: TargetPod) -> list[dict[str, Any]]:
    """Two owners: a foreground delete of one does not pull the fence down while the other lives."""
    return [
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": mount.metadata.name,
            "uid": mount.metadata.uid,
            "controller": True,
        },
        {"apiVersion": "v1", "kind": "Pod", "name": target.name, "uid": target.api_uid},
    ]


def _is_owned(references: Sequence[Json], mount: DeviceMount, *, target_uid: str) -> bool:
    """Garbage collection takes the mount's reference off once the mount is deleted (foreground,
    orphan) or gone, and leaves the target's: no reason to forget what it holds. The watch of pods
    may tell of that before the one of DeviceMounts tells that the mount is being deleted."""
    controllers = _controllers(references)
    if controllers:
        return any(reference.get("uid") == mount.metadata.uid for reference in controllers)
    is_target_s_alone = {reference.get("uid") for reference in references} == {target_uid}
    return is_target_s_alone or mount.metadata.deletion_timestamp is not None


def _controllers(references: Sequence[Json]) -> list[Json]:
    return [reference for reference in references if reference.get("controller") is True]


def _only_on(node: NodeName) -> dict[str, Any]:
    """By the node's name as the API has it: the hostname label may be another."""
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    term = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}


def _tolerations(target: TargetPod) -> list[dict[str, Any]]:
    """The target's own, so that both are evicted alike, and every NoSchedule.

    The target runs on this node already: taints that came later, those of node conditions and the
    resource's own keep new work away, not what belongs to a pod that is there.
    """
    return [
        *(_to_json(toleration) for toleration in target.tolerations),
        {"operator": "Exists", "effect": "NoSchedule"},
    ]


def _to_json(toleration: Toleration) -> dict[str, Any]:
    fields = {
        "key": toleration.key,
        "operator": toleration.operator,
        "value": toleration.value,
        "effect": toleration.effect,
        "tolerationSeconds": toleration.toleration_seconds,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _placement(reservation: Reservation) -> dict[str, Any]:
    fields = {
        "schedulerName": reservation.scheduler_name,
        "runtimeClassName": reservation.runtime_class_name,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _priority(target: TargetPod, named: PriorityClass | None) -> dict[str, Any]:
    """The named class, else the target's, and its value with it: the API server refuses the pod if
    the class has another by now.

    So a class that was raised since, or a default that came later, never puts the shadow pod above
    its target. Classes of the system are not for tenants: such a target's shadow pod goes without,
    which is lower.
    """
    if named is not None:
        return {"priorityClassName": named.name, "priority": named.value}
    if target.priority_class is not None and target.priority_class.startswith("system-"):
        return {}
    fields = {"priorityClassName": target.priority_class, "priority": target.priority}
    return {key: value for key, value in fields.items() if value is not None}


def _hold(resources: Mapping[str, int], image: str, has: Sizes) -> dict[str, Any]:
    devices = {resource: str(count) for resource, count in resources.items()}
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(COMMAND),
        "resources": {
            "requests": {**has.requests, **devices},
            "limits": {**has.limits, **devices},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _hold_of(pod: Json) -> Json:
    return next((c for c in pod["spec"]["containers"] if c["name"] == CONTAINER), {})


def _program(image: str) -> str:
    """Return the image's name without registry, tag and digest."""
    return _last_component(image).partition("@")[0].partition(":")[0]


def _last_component(image: str) -> str:
    """Return name with tag or digest: registries are mirrored and their names rewritten."""
    return image.rpartition("/")[2]
