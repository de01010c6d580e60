# SPDX-License-Identifier: Apache-2.0
"""What proves that nothing of a mount can be used any more where no agent says so.

An agent is asked first, and again; only when it stays silent something else counts: that its node
is gone for good, that the target pod's kubelet has said that each of its containers has ended, or
that an administrator takes it upon themselves. Time alone proves nothing: a node that cannot be
reached may run on.
"""

from dataclasses import replace
from typing import Final

from devicemount_operator.decide.decision import (
    Action,
    By,
    Decision,
    Discharge,
    Event,
    EventType,
    Proof,
    Remove,
)
from devicemount_operator.decide.observation import (
    ContainerID,
    GrantPhase,
    NodeName,
    Observation,
    Place,
    PodUID,
    Silence,
    TargetPod,
)
from devicemount_operator.decide.text import MAX_EVENT_MESSAGE, clip, listing

RELEASE: Final = "devicemount.io/release-without-proof"  # needs the verb `release`: policy-release
SILENT_S: Final = 10.0  # an agent that is restarted answers by then
SILENT_TIMES: Final = 3  # that it was asked
RELEASED: Final = "ReleasedWithoutProof"
_MAX_WHY: Final = 256


def has_fallen_silent(silence: Silence | None, *, now: float) -> bool:
    """Say whether an agent has not answered for so long and so often that it is not waited for."""
    if silence is None:
        return False
    return silence.times >= SILENT_TIMES and now - silence.since >= SILENT_S


def is_silent(observation: Observation, node: NodeName) -> bool:
    """Say whether the node's agent was asked to give something of this mount back, in vain."""
    return has_fallen_silent(observation.agent.unanswered.get(node), now=observation.now)


def places(observation: Observation) -> tuple[Place, ...]:
    """Return where something of this mount is not given back, as far as anybody remembers."""
    found = [s.place for s in observation.ours if not observation.is_released(s)]
    found += [g.place for g in observation.agent.grants if g.phase is not GrantPhase.REMOVED]
    found += [
        Place(node=NodeName(row.node_name), target_uid=PodUID(row.pod_uid))
        for row in observation.mount.status.targets
        if row.shadow_pods and row.node_name
    ]
    return tuple(dict.fromkeys(found))


def needs_witness(observation: Observation) -> bool:
    """Say whether something of the mount is where no agent tells how its target pod ends."""
    return any(
        is_silent(observation, place.node) or place.node not in observation.agent.nodes
        for place in places(observation)
    )


def of(observation: Observation, place: Place) -> Proof | None:
    """Return what proves that nothing of the mount can be used there; None: nothing does."""
    if not is_silent(observation, place.node):
        return None
    node = observation.node
    if node is not None and node.name == place.node:
        if node.is_deleted:
            text = f"node {node.name} was deleted, and its agent does not answer"
            return Proof(By.NODE, text)
        if node.is_out_of_service:
            text = f"node {node.name} is tainted as out of service, and its agent does not answer"
            return Proof(By.NODE, text)
    for pod in (observation.target, observation.last):
        is_it = isinstance(pod, TargetPod) and pod.uid == place.target_uid
        if isinstance(pod, TargetPod) and is_it and _is_over(observation, pod):
            text = f"pod {pod.name} has ended with all its containers, says its kubelet"
            return Proof(By.POD, text)
    meta = observation.mount.metadata
    said = meta.annotations.get(RELEASE)
    if said and meta.deletion_timestamp is not None:  # it may be left over on one that lives
        return Proof(By.ADMINISTRATOR, clip(said, _MAX_WHY))
    return None


def accept(observation: Observation, decision: Decision) -> Decision:
    """Return the same without asking agents that stay silent for what is proved otherwise."""
    actions = tuple(_accepted(observation, action) for action in decision.actions)
    if actions == decision.actions:
        return decision
    return replace(decision, actions=actions, events=(*_warnings(actions), *decision.events))


def _accepted(observation: Observation, action: Action) -> Action:
    if not isinstance(action, Remove) or (proof := of(observation, action.place)) is None:
        return action
    devices = _devices(observation, action.place)
    return Discharge(
        place=action.place, shadow_uids=action.shadow_uids, proof=proof, devices=devices
    )


def _is_over(observation: Observation, pod: TargetPod) -> bool:
    """Say whether the kubelet's last word is about the very container that had the devices."""
    if not pod.has_ended:
        return False
    known = [g.container_id for g in observation.agent.grants if g.place.target_uid == pod.uid]
    for row in observation.mount.status.targets:
        if row.pod_uid == pod.uid and row.container_id:
            known.append(ContainerID(row.container_id))
    return all(container_id in pod.ended for container_id in known if container_id)


def _devices(observation: Observation, place: Place) -> tuple[str, ...]:
    """Name what may be in use there still."""
    named = [d for g in observation.agent.grants if g.place == place for d in g.devices]
    ids = [f"{device.resource} {device.id}" for device in named]
    for row in observation.mount.status.targets:
        if row.pod_uid == place.target_uid:
            ids += [f"{device.resource} {device.id}" for device in row.devices]
    return tuple(dict.fromkeys(ids))


def _warnings(actions: tuple[Action, ...]) -> tuple[Event, ...]:
    """Tell of what is released on somebody's word."""
    on_word = {
        action.place: action
        for action in actions
        if isinstance(action, Discharge) and action.proof.by is By.ADMINISTRATOR
    }
    return tuple(_warning(action) for action in on_word.values())


def _warning(action: Discharge) -> Event:
    what = listing(action.devices) if action.devices else "what was reserved"
    text = f"{what} on node {action.place.node} is given back and may be in use there still"
    text += f", on an administrator's word: {action.proof.text}"
    return Event(EventType.WARNING, RELEASED, clip(text, MAX_EVENT_MESSAGE))
