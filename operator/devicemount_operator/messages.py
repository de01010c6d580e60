# SPDX-License-Identifier: Apache-2.0
"""What agents say, as the plain types that decisions read. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from devicemount_agent_api.v1 import agent_pb2
from devicemount_operator.decide.observation import (
    Concern,
    ContainerID,
    Device,
    DeviceNode,
    Grant,
    GrantPhase,
    Holder,
    NodeName,
    Place,
    PodUID,
    ResourceFacts,
)

_PHASES: Mapping[int, GrantPhase] = {
    agent_pb2.WAITING: GrantPhase.WAITING,
    agent_pb2.GRANTED: GrantPhase.GRANTED,
    agent_pb2.BUSY: GrantPhase.BUSY,
    agent_pb2.LOST_PHASE: GrantPhase.LOST,
    agent_pb2.REMOVED: GrantPhase.REMOVED,
    agent_pb2.TARGET_ENDED: GrantPhase.TARGET_ENDED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MountGrants:
    """What an agent says of one mount."""

    mount_uid: str
    place: Place
    phase: GrantPhase  # the least of its shadow pods'
    grants: tuple[Grant, ...]


def mount_grants(state: agent_pb2.MountState, *, node: NodeName) -> MountGrants:
    """Parse what that node's agent says of one mount."""
    place = Place(node=node, target_uid=PodUID(state.key.pod_uid))
    return MountGrants(
        mount_uid=state.key.mount_uid,
        place=place,
        phase=_phase(state.phase),
        grants=tuple(_grant(state, shadow, place) for shadow in state.shadow_pods),
    )


def _phase(phase: int) -> GrantPhase:
    """A phase that a newer agent may send and that we do not know promises nothing: waiting."""
    return _PHASES.get(phase, GrantPhase.WAITING)


def _grant(state: agent_pb2.MountState, shadow: agent_pb2.ShadowState, place: Place) -> Grant:
    is_told = bool(shadow.container)  # an older agent says it of the mount only
    granted_ns = shadow.granted_unix_ns if is_told else state.granted_unix_ns
    return Grant(
        shadow_uid=PodUID(shadow.uid),
        shadow_name=shadow.name,
        place=place,
        phase=_phase(shadow.phase),
        devices=tuple(_device(device) for device in shadow.devices),
        holders=tuple(_holder(holder) for holder in shadow.holders),
        holders_total=shadow.holders_total,
        concerns=tuple(Concern(reason=c.reason, message=c.message) for c in shadow.concerns),
        repairs=shadow.repairs,
        restarts=shadow.restarts,
        lost=_lost(shadow),
        container_id=ContainerID(state.container_id) if state.container_id else None,
        container=shadow.container,
        granted_wall=granted_ns / 1e9 if granted_ns else None,
        incomplete=state.incomplete,
        timings_ms={step: us / 1000 for step, us in sorted(state.timings_us.items())},
    )


def _lost(shadow: agent_pb2.ShadowState) -> Concern | None:
    if not shadow.HasField("lost"):
        return None
    return Concern(reason=shadow.lost.reason, message=shadow.lost.message)


def _device(device: agent_pb2.Device) -> Device:
    nodes = tuple(
        DeviceNode(path=n.path, type=n.type, major=n.major, minor=n.minor, access=n.access)
        for n in device.nodes
    )
    return Device(
        resource=device.resource,
        id=device.id,
        nodes=nodes,
        mounts=tuple(device.mounts),
        env_file=device.env_file,
        health=device.health,
    )


def resource_facts(state: agent_pb2.ResourceState) -> ResourceFacts:
    """Parse what a node says of a resource."""
    return ResourceFacts(
        resource=state.resource,
        serialised=state.serialised,
        env_only=state.env_only,
        refused=state.refused,
        driver_missing=state.driver_missing,
    )


def _holder(holder: agent_pb2.Holder) -> Holder:
    return Holder(
        pid=holder.pid,
        command=holder.command,
        pod_uid=holder.pod_uid,
        container_id=holder.container_id,
        blocking=holder.blocking,
        note=holder.note,
        container=holder.container,
        pod_name=holder.pod_name,
        pod_namespace=holder.pod_namespace,
    )
