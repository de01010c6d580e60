# SPDX-License-Identifier: Apache-2.0
"""What a pass must read before it can decide, besides what is known anyway: each read costs the API
server or an agent, so none is made that decides nothing.

Pure: `observe` reads what is named here. A pass that grants nothing reads nothing.
"""

from typing import Final

from devicemount_operator.decide import proof
from devicemount_operator.decide.fit import fit
from devicemount_operator.decide.observation import (
    ContainerState,
    NodeName,
    Observation,
    ShadowPod,
    TargetPod,
    choice,
    is_granted,
    is_placed,
    is_unwanted,
    known_container,
)
from devicemount_operator.decide.target import is_gone
from devicemount_operator.reasons import Reason

_NOT_PLACED: Final = frozenset(
    {
        Reason.INSUFFICIENT,
        Reason.RESOURCE_UNKNOWN,
        Reason.DRIVER_MISSING,
        Reason.UNSCHEDULABLE,
        Reason.QUOTA_EXCEEDED,
        Reason.WEBHOOK_UNAVAILABLE,
    }
)
_AFTER_LOSS: Final = (Reason.RESERVATION_LOST.value, Reason.NODE_DRAINING.value)


def needs_target(observation: Observation) -> bool:
    """Say whether this pass can decide only after a GET of the target pod.

    Not while the mount is deleted or suspended (unless its node has no agent), is mounted
    as it is meant, waits for an Apply, or is held back after a setback.
    """
    if is_unwanted(observation):
        return proof.needs_witness(observation)
    standing = observation.standing
    if standing and not fit(observation).lacking:
        if all(is_granted(observation.grant_of(shadow)) for shadow in standing):
            return not _is_meant(observation)
        if observation.agent.applying == {shadow.uid for shadow in standing}:
            return False
    return observation.held_back_s == 0.0


def needs_node(observation: Observation) -> NodeName | None:
    """Return the node that explains why nothing goes on: no agent that answers, a scheduler
    complains, or it is being drained, which only after a loss is asked for."""
    pod = observation.target
    places = [place.node for place in proof.places(observation)]
    wanted = [pod.node] if isinstance(pod, TargetPod) and pod.node else []
    for node in (*wanted, *places):
        lacks = node not in observation.agent.nodes or proof.is_silent(observation, node)
        if node and lacks:
            return node
    told = [s.place.node for s in observation.standing if s.scheduler_text and s.place.node]
    if follows_loss(observation) and (lost := to_reserve(observation)) is not None and lost.node:
        told.append(lost.node)
    return next(iter(told), None)


def needs_word(observation: Observation) -> NodeName | None:
    """Return the node whose agent must say what is granted before anything is given back: to an
    operator that has just started, all that stands seems to be idle."""
    found = fit(observation)
    if is_unwanted(observation) or is_gone(observation) or not (found.idle or found.surplus):
        return None
    unheard = (
        shadow.place.node
        for shadow in observation.standing
        if shadow.scheduled and observation.grant_of(shadow) is None
    )
    return next((node for node in unheard if node in observation.agent.nodes), None)


def follows_loss(observation: Observation) -> bool:
    """Say whether what was reserved was taken away by others: as this operator or status knows."""
    setback = observation.setback
    if setback is not None and setback.reason is Reason.RESERVATION_LOST:
        return True
    status = observation.mount.status
    told = [c.reason for c in status.conditions if c.type == "Ready"]
    told += [row.reason for row in status.targets if row.reason]
    return any(reason in _AFTER_LOSS for reason in told)


def to_reserve(observation: Observation) -> TargetPod | None:
    """Return the target pod for which this pass would make a shadow pod, if nothing objects."""
    pod = observation.target
    if is_unwanted(observation) or not isinstance(pod, TargetPod) or pod.deleting:
        return None
    if observation.held_back_s or not fit(observation).lacking:
        return None
    container = choice(observation.mount.spec.target, pod)
    runs = container is not None and container.state is ContainerState.RUNNING
    return pod if runs and pod.node in observation.agent.nodes else None


def unplaced(observation: Observation) -> ShadowPod | None:
    """Return the first shadow pod that waits for a scheduler."""
    return next((s for s in observation.standing if not is_placed(observation, s)), None)


def needs_facts(observation: Observation) -> NodeName | None:
    """Return the node whose profiles decide: before anything is reserved, and while it waits."""
    pod, waiting = to_reserve(observation), unplaced(observation)
    if pod is not None:
        return pod.node
    if waiting is None or is_unwanted(observation):
        return None
    return waiting.place.node if waiting.place.node in observation.agent.nodes else None


def needs_priority(observation: Observation) -> str | None:
    """Return the PriorityClass to be compared with the target's before a shadow pod has it."""
    name = observation.mount.spec.reservation.priority_class_name
    return name if to_reserve(observation) is not None else None


def serialised(observation: Observation) -> frozenset[str]:
    """Return the resources that are given to one shadow pod at a time on the node."""
    return frozenset(fact.resource for fact in observation.facts or () if fact.serialised)


def was_not_placed(observation: Observation) -> bool:
    """Say whether the last attempt failed since no scheduler placed the shadow pod."""
    return observation.setback is not None and observation.setback.reason in _NOT_PLACED


def _is_meant(observation: Observation) -> bool:
    """Say whether what is mounted is what spec.target means now, as far as no pod is read for it:
    it was asked for so, or status says Ready of this very generation."""
    mount, pod_uids = observation.mount, {s.place.target_uid for s in observation.standing}
    if len(pod_uids) > 1 or any(known_container(observation, uid) is None for uid in pod_uids):
        return False
    if observation.agent.asked_for == mount.spec.target:
        return True
    is_ready = any(c.type == "Ready" and c.status == "True" for c in mount.status.conditions)
    return is_ready and mount.status.observed_generation == mount.metadata.generation
