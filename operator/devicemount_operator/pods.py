# SPDX-License-Identifier: Apache-2.0
"""Pods from the API server's JSON to what decisions know: the boundary at which they are parsed,
once.

Pure. Tolerant of what is absent, since a pod that was just posted has no status.
"""

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

_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


def to_target(pod: Json) -> TargetPod:
    """Parse the pod that a mount names."""
    meta, spec = pod["metadata"], pod["spec"]
    statuses = {s["name"]: s for s in _status(pod).get("containerStatuses") or ()}
    return TargetPod(
        name=meta["name"],
        uid=PodUID(meta["uid"]),
        node=NodeName(spec["nodeName"]) if spec.get("nodeName") else None,
        phase=_phase(pod),
        deleting="deletionTimestamp" in meta,
        containers=tuple(
            _container(
                c["name"],
                status=statuses.get(c["name"], {}),
                restarts=c.get("restartPolicy") or spec.get("restartPolicy", "Always"),
            )
            for c in spec["containers"]
        ),
        default_container=(meta.get("annotations") or {}).get(_DEFAULT_CONTAINER) or None,
        tolerations=tuple(_toleration(t) for t in spec.get("tolerations") or ()),
        priority_class=spec.get("priorityClassName") or None,
        priority=spec.get("priority"),
    )


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
        is_ours=shadow_pod.is_ours(pod, mount=mount, image=image),
        phase=_phase(pod),
        deleting="deletionTimestamp" in meta,
        failure=status.get("reason") or "" if failed else "",
        failure_text=status.get("message") or "" if failed else "",
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
    return NodeView(
        name=NodeName(node["metadata"]["name"]),
        is_enabled=(node["metadata"].get("labels") or {}).get(ENABLED_LABEL) == ENABLED_VALUE,
        allocatable={
            name: int(n) for name, n in allocatable.items() if "/" in name and n.isdecimal()
        },
    )


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


def _container(name: str, *, status: Json, restarts: str) -> TargetContainer:
    state = status.get("state") or {}
    runs = "running" in state
    container_id = status.get("containerID", "").rpartition("/")[2] if runs else ""
    return TargetContainer(
        name=name,
        state=ContainerState.RUNNING if runs else _not_running(state, restarts),
        container_id=ContainerID(container_id) if container_id else None,
        detail=_detail(status),
    )


def _not_running(state: Json, restarts: str) -> ContainerState:
    if "terminated" not in state:
        return ContainerState.WAITING
    succeeded = state["terminated"].get("exitCode") == 0
    ended = restarts == "Never" or (restarts == "OnFailure" and succeeded)
    return ContainerState.FINISHED if ended else ContainerState.WAITING


def _detail(status: Json) -> str:
    """Return why a container waits or how it ended: "CrashLoopBackOff: back-off 10s ..."."""
    state = status.get("state") or {}
    reason = state.get("waiting") or state.get("terminated") or {}
    return ": ".join(text for text in (reason.get("reason"), reason.get("message")) if text)


def _toleration(toleration: Json) -> Toleration:
    return Toleration(
        key=toleration.get("key"),
        operator=toleration.get("operator"),
        value=toleration.get("value"),
        effect=toleration.get("effect"),
        toleration_seconds=toleration.get("tolerationSeconds"),
    )
