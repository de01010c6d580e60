# SPDX-License-Identifier: Apache-2.0
"""Pods from the API server's JSON to what decisions know: the boundary at which they are parsed,
once.

Pure. Tolerant of what is absent, since a pod that was just posted has no status.
"""

import re
from collections.abc import Mapping
from typing import Any

from devicemount_agent_api.labels import ENABLED_LABEL, ENABLED_VALUE
from devicemount_operator import shadow_pod
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.decide.observation import (
    ContainerID,
    ContainerState,
    NodeName,
    NodeView,
    Place,
    PodPhase,
    PodUID,
    ShadowPod,
    TargetContainer,
    TargetPod,
    Toleration,
)

Json = Mapping[str, Any]

# By these, node autoscalers keep new work away before they evict what is there.
_LEAVING = (
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
)
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
STATIC = "kubernetes.io/config.mirror"  # the kubelet's UID of a static pod, on the copy of it
_STATIC_UID = re.compile("[0-9a-f][0-9a-f-]{30,34}[0-9a-f]")  # a hash, or what its file says
_ON_FAILURE, _NEVER = "OnFailure", "Never"
_LAST = (PodPhase.SUCCEEDED, PodPhase.FAILED)


def to_target(pod: Json) -> TargetPod:
    """Parse the pod that a mount names."""
    meta, spec = pod["metadata"], pod["spec"]
    return TargetPod(
        name=meta["name"],
        uid=uid_of(pod),
        api_uid=PodUID(meta["uid"]),
        has_ended=_has_ended(pod),
        ended=frozenset(filter(None, (_ended_id(s) for s in _statuses(pod).values()))),
        node=NodeName(spec["nodeName"]) if spec.get("nodeName") else None,
        phase=_phase(pod),
        deleting="deletionTimestamp" in meta,
        containers=_containers(pod, "containers", restarts=spec.get("restartPolicy", "Always")),
        others=(
            *_containers(pod, "initContainers", restarts=_of_init(spec)),
            *_containers(pod, "ephemeralContainers", restarts=_NEVER),
        ),
        default_container=(meta.get("annotations") or {}).get(_DEFAULT_CONTAINER) or None,
        tolerations=tuple(_toleration(t) for t in spec.get("tolerations") or ()),
        priority_class=spec.get("priorityClassName") or None,
        priority=spec.get("priority"),
    )


def uid_of(pod: Json) -> PodUID:
    """Return the UID under which a target pod's node knows it: kubelet, runtime, cgroups.

    Of a static pod the API server has a copy with a UID of its own. That somebody else may write
    this annotation gives nothing away: the agent demands that this UID's container be of the same
    namespace and name.
    """
    meta = pod["metadata"]
    said = (meta.get("annotations") or {}).get(STATIC) or ""
    return PodUID(said if _STATIC_UID.fullmatch(said) else meta["uid"])


def to_shadow(
    pod: Json, *, mount: DeviceMount, image: str, seen: float, hold_down_since: float | None
) -> ShadowPod:
    """Parse a pod with the mount's label; the two times are the watcher's, monotonic."""
    meta, spec, status = pod["metadata"], pod["spec"], _status(pod)
    scheduled = _condition(pod, "PodScheduled")
    failed = _phase(pod) is PodPhase.FAILED
    return ShadowPod(
        name=meta["name"],
        uid=PodUID(meta["uid"]),
        place=Place(node=shadow_pod.node_of(pod), target_uid=shadow_pod.target_uid_of(pod)),
        created=meta.get("creationTimestamp") or "",
        target_name=shadow_pod.target_name_of(pod),
        is_ours=shadow_pod.is_ours(pod, mount=mount, image=image),
        resources=shadow_pod.counts_of(pod),
        phase=_phase(pod),
        deleting="deletionTimestamp" in meta,
        failure=status.get("reason") or "" if failed else "",
        failure_text=status.get("message") or "" if failed else "",
        disruption=_text(_condition(pod, "DisruptionTarget")),
        scheduled=bool(spec.get("nodeName")),
        scheduler=spec.get("schedulerName") or "default-scheduler",
        scheduler_text=scheduled.get("message") or "" if scheduled.get("status") == "False" else "",
        gates=tuple(gate["name"] for gate in spec.get("schedulingGates") or ()),
        claim=(status.get("extendedResourceClaimStatus") or {}).get("resourceClaimName") or "",
        hold_text=_detail(_hold_status(pod)),
        hold_down_since=hold_down_since,
        seen=seen,
    )


def is_hold_down(pod: Json) -> bool:
    """Say whether a node has the shadow pod and its process `hold` does not run there."""
    running = "running" in (_hold_status(pod).get("state") or {})
    return bool(pod["spec"].get("nodeName")) and not running


def is_undecided(pod: Json) -> bool:
    """Say whether the kubelet may still be choosing devices for the shadow pod.

    It writes nothing of a container into status before it has (1.37, pods are admitted first). A
    pod that is deleted before a scheduler has placed it never reaches one, however long somebody's
    finalizer keeps it.
    """
    never = "deletionTimestamp" in pod["metadata"] and not pod["spec"].get("nodeName")
    return _phase(pod) is PodPhase.PENDING and not _hold_status(pod) and not never


def to_node(node: Json) -> NodeView:
    """Parse whether a node is lent to us, and its extended resources, whole devices only."""
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    taints = (node.get("spec") or {}).get("taints") or ()
    return NodeView(
        name=NodeName(node["metadata"]["name"]),
        is_out_of_service=any(taint.get("key") == _OUT_OF_SERVICE for taint in taints),
        leaving=_leaving(node),
        is_enabled=(node["metadata"].get("labels") or {}).get(ENABLED_LABEL) == ENABLED_VALUE,
        allocatable={
            name: int(n) for name, n in allocatable.items() if "/" in name and n.isdecimal()
        },
    )


def _leaving(node: Json) -> str:
    """Say what keeps new work away since the node is to be emptied."""
    spec = node.get("spec") or {}
    if spec.get("unschedulable"):
        return "is cordoned"
    keys = (str(taint.get("key")) for taint in spec.get("taints") or ())
    found = next((key for key in keys if key in _LEAVING), "")
    return f"is about to be removed (taint {found})" if found else ""


def _status(pod: Json) -> Json:
    status: Json = pod.get("status") or {}
    return status


def _phase(pod: Json) -> PodPhase:
    return PodPhase(_status(pod).get("phase") or "Pending")


def _condition(pod: Json, kind: str) -> Json:
    conditions = _status(pod).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind), {})


def _hold_status(pod: Json) -> Json:
    statuses = _status(pod).get("containerStatuses") or ()
    return next((s for s in statuses if s["name"] == shadow_pod.CONTAINER), {})


def _statuses(pod: Json) -> dict[str, Json]:
    """Return what is said of each container, of whatever kind, by name."""
    kinds = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
    return {s["name"]: s for kind in kinds for s in _status(pod).get(kind) or ()}


def _of_init(spec: Json) -> str:
    """Return when an init container runs again that says nothing else: never after a success."""
    policy = str(spec.get("restartPolicy", "Always"))
    return _ON_FAILURE if policy == "Always" else policy


def _containers(pod: Json, kind: str, *, restarts: str) -> tuple[TargetContainer, ...]:
    """Parse the containers of one kind; a sidecar is an init container that says Always."""
    statuses, is_deleted = _statuses(pod), "deletionTimestamp" in pod["metadata"]
    return tuple(
        _container(
            c["name"],
            status=statuses.get(c["name"], {}),
            restarts=_NEVER if is_deleted else c.get("restartPolicy") or restarts,
        )
        for c in pod["spec"].get(kind) or ()
    )


def _container(name: str, *, status: Json, restarts: str) -> TargetContainer:
    state = status.get("state") or {}
    runs = "running" in state
    container_id = _id_of(status) if runs else None
    return TargetContainer(
        name=name,
        state=ContainerState.RUNNING if runs else _not_running(state, restarts),
        container_id=container_id,
        detail=_detail(status),
    )


def _not_running(state: Json, restarts: str) -> ContainerState:
    if "terminated" not in state:
        return ContainerState.WAITING
    succeeded = state["terminated"].get("exitCode") == 0
    ended = restarts == _NEVER or (restarts == _ON_FAILURE and succeeded)
    return ContainerState.FINISHED if ended else ContainerState.WAITING


def _has_ended(pod: Json) -> bool:
    """Say whether no process of the pod is left, in the words of its kubelet.

    Its phase says less: controllers write it for nodes of which nobody has heard.
    """
    is_last = "deletionTimestamp" in pod["metadata"] or _phase(pod) in _LAST
    statuses = _statuses(pod)
    names = {container["name"] for container in pod["spec"]["containers"]}
    return is_last and names <= statuses.keys() and all(map(_ended_id, statuses.values()))


def _ended_id(status: Json) -> ContainerID | None:
    """Return the container that has ended, if it has and no other took its place."""
    return _id_of(status) if "terminated" in (status.get("state") or {}) else None


def _id_of(status: Json) -> ContainerID | None:
    return ContainerID(status.get("containerID", "").rpartition("/")[2]) or None


def _detail(status: Json) -> str:
    """Return why a container waits or how it ended: "CrashLoopBackOff: back-off 10s ..."."""
    state = status.get("state") or {}
    return _text(state.get("waiting") or state.get("terminated") or {})


def _text(said: Json) -> str:
    """Return "reason: message" of whatever has these two."""
    return ": ".join(text for text in (said.get("reason"), said.get("message")) if text)


def _toleration(toleration: Json) -> Toleration:
    return Toleration(
        key=toleration.get("key"),
        operator=toleration.get("operator"),
        value=toleration.get("value"),
        effect=toleration.get("effect"),
        toleration_seconds=toleration.get("tolerationSeconds"),
    )
