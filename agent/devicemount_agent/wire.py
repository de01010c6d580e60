# SPDX-License-Identifier: Apache-2.0
"""Between the contract's messages and what the agent speaks. Everything that comes in is bounded
and checked here.

What is not of the right shape is NotAllowed: an operator of ours does not send it.
"""

import re
from collections.abc import Iterable

from devicemount_agent.allocation.facts import ResourceFacts
from devicemount_agent.errors import NotAllowed
from devicemount_agent.logs import plain
from devicemount_agent.model import (
    Concern,
    ContainerID,
    Device,
    DeviceNode,
    Health,
    Holder,
    MountUID,
    PodUID,
    ResourceName,
)
from devicemount_agent.node import NodeFacts
from devicemount_agent.requests import (
    ApplyRequest,
    Epoch,
    MountKey,
    Order,
    Policy,
    RemoveRequest,
    ShadowPod,
    Target,
)
from devicemount_agent.state import MountState, Phase, ShadowState
from devicemount_agent_api.v1 import agent_pb2 as pb

SHADOW_PODS_LIMIT = 64  # ordinals that the operator tries
RESOURCES_LIMIT = 16
COUNT_LIMIT = 1 << 20  # Volcano counts GPU memory in devices of 1 MiB
NODE_RESOURCES_LIMIT = 256  # in one question about the node
GRACE_LIMIT_S = 3600  # what a DeviceMount may ask for
CONCERN_LIMIT = 1024  # characters of a sentence
HOLDERS_LIMIT = 32  # of one shadow pod; the message says how many there are

_UID = re.compile(r"[0-9A-Za-z-]{8,64}")
_CONTAINER_ID = re.compile(r"[0-9A-Za-z]{0,128}")
_NAME = re.compile(r"[0-9a-z]([0-9a-z.-]{0,251}[0-9a-z])?")
_RESOURCE = re.compile(r"[0-9A-Za-z./_-]{1,317}")

_PHASES = {
    Phase.WAITING: pb.WAITING,
    Phase.LOST: pb.LOST_PHASE,
    Phase.TARGET_ENDED: pb.TARGET_ENDED,
    Phase.BUSY: pb.BUSY,
    Phase.GRANTED: pb.GRANTED,
    Phase.REMOVED: pb.REMOVED,
}


def to_apply(message: pb.ApplyRequest) -> ApplyRequest:
    """Check an ApplyRequest. Raises NotAllowed."""
    key = _key(message.key)
    if not 0 < len(message.shadow_pods) <= SHADOW_PODS_LIMIT:
        raise NotAllowed(f"{len(message.shadow_pods)} shadow pods")
    hint = _matched(_CONTAINER_ID, message.target.container_id, "container id")
    return ApplyRequest(
        key=key,
        order=_order(message.epoch, message.revision),
        mount_name=_matched(_NAME, message.mount_name, "mount name"),
        target=Target(
            namespace=_matched(_NAME, message.target.namespace, "namespace"),
            pod_name=_matched(_NAME, message.target.pod_name, "pod name"),
            container=_matched(_NAME, message.target.container, "container name"),
        ),
        container_hint=ContainerID(hint) if hint else None,
        shadow_pods={_shadow(s, key): _resources(s) for s in message.shadow_pods},
        accept_env_file=message.accept_env_file,
    )


def to_remove(message: pb.RemoveRequest) -> RemoveRequest:
    """Check a RemoveRequest. Raises NotAllowed."""
    if len(message.shadow_uids) > SHADOW_PODS_LIMIT:
        raise NotAllowed(f"{len(message.shadow_uids)} shadow pods")
    policies = {pb.WAIT: Policy.WAIT, pb.TERMINATE: Policy.TERMINATE, pb.LOST: Policy.LOST}
    if message.policy not in policies:
        raise NotAllowed(f"policy {message.policy}")
    if not 0 <= message.grace_seconds <= GRACE_LIMIT_S:
        raise NotAllowed(f"{message.grace_seconds} s of grace")
    return RemoveRequest(
        key=_key(message.key),
        order=_order(message.epoch, message.revision),
        shadow_uids=frozenset(PodUID(_matched(_UID, u, "UID")) for u in message.shadow_uids),
        policy=policies[message.policy],
        grace_s=message.grace_seconds,
        include_main_process=message.include_main_process,
    )


def to_resources(message: pb.NodeRequest) -> tuple[ResourceName, ...]:
    """Check a NodeRequest. Raises NotAllowed."""
    if len(message.resources) > NODE_RESOURCES_LIMIT:
        raise NotAllowed(f"{len(message.resources)} resources")
    return tuple(ResourceName(_matched(_RESOURCE, r, "resource")) for r in message.resources)


def from_facts(node: NodeFacts, facts: Iterable[ResourceFacts]) -> pb.NodeState:
    return pb.NodeState(
        cgroup_mode=node.cgroup_mode,
        kernel=node.kernel,
        runtime=node.runtime,
        boot_id=node.boot_id,
        version=node.version,
        resources=[
            pb.ResourceState(
                resource=fact.resource,
                profile=fact.profile,
                serialised=fact.is_serialised,
                env_only=fact.env_only,
                refused=fact.refused,
                driver_missing=fact.driver_missing,
            )
            for fact in facts
        ],
    )


def from_state(state: MountState) -> pb.MountState:
    return pb.MountState(
        key=pb.MountKey(mount_uid=state.key.mount_uid, pod_uid=state.key.pod_uid),
        container_id=state.container_id or "",
        phase=_PHASES[state.phase],
        shadow_pods=map(_from_shadow, state.shadow_pods),
        granted_unix_ns=state.granted_unix_ns,
        timings_us=state.timings_us,
        incomplete=state.is_incomplete,
    )


def from_states(states: Iterable[MountState]) -> pb.ListResponse:
    return pb.ListResponse(mounts=map(from_state, states))


def _from_shadow(shadow: ShadowState) -> pb.ShadowState:
    return pb.ShadowState(
        uid=shadow.uid,
        name=shadow.name,
        phase=_PHASES[shadow.phase],
        devices=[_from_device(device, shadow) for device in shadow.devices],
        holders=map(_from_holder, shadow.holders[:HOLDERS_LIMIT]),
        holders_total=len(shadow.holders),
        concerns=map(_from_concern, shadow.concerns),
        repairs=shadow.repairs,
        restarts=shadow.restarts,
        lost=_from_concern(shadow.lost) if shadow.lost is not None else None,
        container=shadow.container,
        granted_unix_ns=shadow.granted_unix_ns,
    )


def _from_device(device: Device, shadow: ShadowState) -> pb.Device:
    edits = device.edits
    return pb.Device(
        resource=device.resource,
        id=device.id,
        nodes=map(_from_node, device.nodes),
        mounts=edits.paths(),
        env_file=shadow.env_file if edits.env else "",
        health=shadow.health.get((device.resource, device.id), Health.UNKNOWN).value,
    )


def _from_node(node: DeviceNode) -> pb.Node:
    return pb.Node(
        path=node.path,
        type=node.number.kind,
        major=node.number.major,
        minor=node.number.minor,
        access=str(node.access),
    )


def _from_concern(concern: Concern) -> pb.Concern:
    return pb.Concern(reason=concern.reason, message=plain(concern.message, limit=CONCERN_LIMIT))


def _from_holder(holder: Holder) -> pb.Holder:
    return pb.Holder(
        pid=holder.pid,
        command=holder.command,
        pod_uid=holder.pod_uid or "",
        container_id=holder.container_id or "",
        blocking=holder.blocking,
        container=holder.container,
        pod_name=holder.pod_name,
        pod_namespace=holder.pod_namespace,
        note=holder.note,
    )


def _key(message: pb.MountKey) -> MountKey:
    return MountKey(
        mount_uid=MountUID(_matched(_UID, message.mount_uid, "UID")),
        pod_uid=PodUID(_matched(_UID, message.pod_uid, "UID")),
    )


def _order(epoch: pb.Epoch, revision: int) -> Order:
    if epoch.lease_created_ns <= 0 or epoch.transitions < 0 or revision < 0:
        raise NotAllowed("no epoch or revision")
    uid = _matched(_UID, epoch.lease_uid, "UID")
    return Order(Epoch(epoch.lease_created_ns, epoch.transitions, uid), revision)


def _shadow(message: pb.ShadowPod, key: MountKey) -> ShadowPod:
    """Check that the shadow pod is named after this mount."""
    if not key.names(message.name):
        raise NotAllowed(f"{message.name!r} is no shadow pod of mount {key}")
    return ShadowPod(PodUID(_matched(_UID, message.uid, "UID")), message.name)


def _resources(message: pb.ShadowPod) -> dict[ResourceName, int]:
    counts = dict(message.resources)
    if not 0 < len(counts) <= RESOURCES_LIMIT:
        raise NotAllowed(f"{len(counts)} resources in shadow pod {message.name}")
    for resource, count in counts.items():
        if not 0 < count <= COUNT_LIMIT:
            raise NotAllowed(f"{count} {resource}")
    return {
        ResourceName(_matched(_RESOURCE, resource, "resource")): count
        for resource, count in counts.items()
    }


def _matched(pattern: re.Pattern[str], text: str, what: str) -> str:
    if not pattern.fullmatch(text):
        raise NotAllowed(f"{text[:80]!r} is no {what}")
    return text
