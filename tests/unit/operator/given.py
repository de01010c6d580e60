# SPDX-License-Identifier: Apache-2.0
"""Observations for tests: one vcs device in pod notebook-0 on node1, and what a case changes."""

from typing import Any

from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.decide.observation import (
    FINALIZER,
    AgentView,
    Concern,
    ContainerID,
    ContainerState,
    Device,
    DeviceNode,
    Grant,
    GrantPhase,
    Holder,
    Milestones,
    NodeName,
    NodeView,
    Observation,
    Place,
    PodPhase,
    PodUID,
    Refusal,
    ResourceFacts,
    ShadowPod,
    TargetContainer,
    TargetPod,
    Toleration,
    Turn,
)
from devicemount_operator.reasons import Reason
from devicemount_operator.reflector import Reflector, Selection

NOW = 1000.0  # monotonic
WALL = 1_700_000_000.0
MOUNT_UID = "11111111-0000-4000-8000-000000000000"
TARGET_UID = PodUID("22222222-0000-4000-8000-000000000000")
SHADOW_UID = PodUID("33333333-0000-4000-8000-000000000000")
NODE = NodeName("node1")
PLACE = Place(node=NODE, target_uid=TARGET_UID)
SHADOW_NAME = "dm-11111111-22222222-0"
NOT_SEEN: dict[str, Any] = {"observedGeneration": -1}
CONTAINER_ID = ContainerID("c0ffee")
RESOURCE = "testbed.devicemount.io/vcs"
COUNTS = {RESOURCE: 1}


def mount(
    *,
    limits: dict[str, int | str] | None = None,
    container: str | None = None,
    status: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    **spec: Any,
) -> DeviceMount:
    target = {"podName": "notebook-0"} | ({} if container is None else {"container": container})
    return DeviceMount.model_validate(
        {
            "metadata": {
                "name": "gpu",
                "namespace": "team-a",
                "uid": MOUNT_UID,
                "generation": 1,
                "finalizers": [FINALIZER],
                **(metadata or {}),
            },
            "spec": {"target": target, "resources": {"limits": limits or {RESOURCE: 1}}, **spec},
            "status": {k: v for k, v in (status or NOT_SEEN).items() if v is not None},
        }
    )


def deleted(**changes: Any) -> DeviceMount:
    meta = {"deletionTimestamp": "2026-11-26T07:00:00Z", **changes.pop("metadata", {})}
    return mount(metadata=meta, **changes)


def container(name: str = "notebook", **changes: Any) -> TargetContainer:
    fields = {"state": ContainerState.RUNNING, "container_id": CONTAINER_ID, "detail": ""}
    return TargetContainer(name=name, **{**fields, **changes})


def target(**changes: Any) -> TargetPod:
    fields: dict[str, Any] = {
        "name": "notebook-0",
        "uid": TARGET_UID,
        "api_uid": TARGET_UID,
        "node": NODE,
        "phase": PodPhase.RUNNING,
        "deleting": False,
        "has_ended": False,
        "ended": frozenset(),
        "others": (),
        "containers": (container(),),
        "default_container": None,
        "tolerations": (),
        "priority_class": None,
        "priority": 0,
    }
    return TargetPod(**{**fields, **changes})


def toleration(**changes: Any) -> Toleration:
    fields = dict.fromkeys(("key", "operator", "value", "effect", "toleration_seconds"))
    return Toleration(**{**fields, **changes})  # type: ignore[arg-type]


def shadow(**changes: Any) -> ShadowPod:
    fields: dict[str, Any] = {
        "name": SHADOW_NAME,
        "uid": SHADOW_UID,
        "place": PLACE,
        "target_name": "notebook-0",
        "is_ours": True,
        "resources": {RESOURCE: 1},
        "phase": PodPhase.PENDING,
        "deleting": False,
        "failure": "",
        "failure_text": "",
        "scheduled": True,
        "scheduler": "default-scheduler",
        "scheduler_text": "",
        "gates": (),
        "claim": "",
        "hold_text": "",
        "hold_down_since": None,
        "seen": NOW - 0.1,
    }
    return ShadowPod(**{**fields, **changes})


def device(id: str = "vcs1", **changes: Any) -> Device:
    node = DeviceNode(path=f"/dev/{id}", type="c", major=7, minor=1, access="rw")
    return Device(**{"resource": RESOURCE, "id": id, "nodes": (node,), **changes})


def holder(pid: int = 17, **changes: Any) -> Holder:
    fields: dict[str, Any] = {
        "command": "python train.py",
        "pod_uid": TARGET_UID,
        "container_id": CONTAINER_ID,
        "blocking": True,
    }
    return Holder(pid=pid, **{**fields, **changes})


def grant(phase: GrantPhase = GrantPhase.GRANTED, **changes: Any) -> Grant:
    fields: dict[str, Any] = {
        "shadow_uid": SHADOW_UID,
        "shadow_name": SHADOW_NAME,
        "place": PLACE,
        "devices": (device(),),
        "holders": (),
        "holders_total": 0,
        "container_id": CONTAINER_ID,
        "granted_wall": WALL - 1,
        "timings_ms": {"chosen": 20.0, "verified": 25.0},
    }
    return Grant(phase=phase, **{**fields, **changes})


def refusal(reason: Reason, message: str = "said the agent", **changes: Any) -> Refusal:
    return Refusal(**{"reason": reason, "message": message, "at": NOW - 0.01, **changes})


def agent(**changes: Any) -> AgentView:
    return AgentView(**{"nodes": frozenset({NODE}), **changes})


def node(*, enabled: bool = True, leaving: str = "", **allocatable: int) -> NodeView:
    has = {RESOURCE: 4, **allocatable}
    return NodeView(name=NODE, is_enabled=enabled, leaving=leaving, allocatable=has)


def facts(resource: str = RESOURCE, **changes: Any) -> ResourceFacts:
    fields = {"serialised": False, "env_only": "", "refused": "", "driver_missing": ""}
    return ResourceFacts(resource=resource, **{**fields, **changes})


def turn(ahead: str = "", **changes: Any) -> Turn:
    return Turn(ahead=ahead, **{"since": NOW - 3, "is_awaited": False, **changes})


def concern(reason: str = "LibrariesMissing", message: str = "libcuda.so.1 is absent") -> Concern:
    return Concern(reason=reason, message=message)


def observation(**changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "mount": mount(),
        "pod_name": "notebook-0",
        "target": target(),
        "last": None,
        "shadows": (),
        "node": None,
        "facts": None,
        "turn": None,
        "priority_class": None,
        "allowed_annotations": frozenset({"scheduling.volcano.sh/queue-name"}),
        "agent": agent(),
        "setback": None,
        "milestones": Milestones(seen=NOW - 0.2, applied=NOW - 0.15),
        "now": NOW,
        "wall": WALL,
        "steady": WALL,
    }
    return Observation(**{**fields, **changes})


def no_watch(selection: Selection) -> Reflector:
    raise AssertionError(f"nothing is to be watched: {selection}")


def mounted(**changes: Any) -> Observation:
    """A mount whose device opens, as it was asked for; the target was not read."""
    seen_by = agent(grants=(grant(),), container="notebook", asked_for=mount().spec.target)
    return observation(**{"target": None, "shadows": (shadow(),), "agent": seen_by, **changes})
