# SPDX-License-Identifier: Apache-2.0
"""The few shapes that a Decision has: something is reported and waited for, or an attempt failed
and backs off.

Checks decide which; here is only how a setback counts and what status says of the target.
"""

from typing import Final

from devicemount_operator import reasons
from devicemount_operator.decide.decision import (
    Action,
    Decision,
    Report,
    TargetPhase,
    TargetReport,
)
from devicemount_operator.decide.observation import (
    GrantPhase,
    Holder,
    Observation,
    Setback,
    TargetPod,
    is_granted,
    known_container,
)
from devicemount_operator.reasons import TABLE, Reason

_GIVEN_AWAY: Final = (GrantPhase.LOST, GrantPhase.REMOVED)
PATIENCE_S: Final = 2.0  # what is over sooner is not worth a status write
CALM_S: Final = 600.0  # failures that lie further apart have nothing to do with each other


def waits(
    observation: Observation,
    *,
    reason: Reason,
    fact: str,
    actions: tuple[Action, ...] = (),
    requeue_after_s: float | None = None,
    target: TargetReport | None = None,
) -> Decision:
    """Report something that is so; no attempt failed, so what earlier ones left stays."""
    return Decision(
        actions=actions,
        report=Report(reason=reason, message=reasons.message(reason, fact), target=target),
        requeue_after_s=requeue_after_s,
        setback=observation.setback,
    )


def fails(
    observation: Observation,
    *,
    reason: Reason,
    fact: str,
    actions: tuple[Action, ...] = (),
    target: TargetReport | None = None,
) -> Decision:
    """Count a failed attempt: report it, and try again after the reason's pause."""
    earlier = recent(observation)
    count = 1 if earlier is None else earlier.count + 1
    pause_s = TABLE[reason].pace.pause_s(count)
    setback = Setback(
        reason=reason,
        message=reasons.message(reason, fact),
        count=count,
        at=observation.now,
        until=observation.now + pause_s,
    )
    return Decision(
        actions=actions,
        report=Report(reason=reason, message=setback.message, target=target),
        requeue_after_s=pause_s,
        setback=setback,
    )


def held_back(observation: Observation, setback: Setback) -> Decision:
    """Say again what the last setback was, until its pause is over."""
    return Decision(
        report=Report(
            reason=setback.reason, message=setback.message, target=reserved_target(observation)
        ),
        requeue_after_s=observation.held_back_s,
        setback=setback,
    )


def reserved_target(
    observation: Observation,
    *,
    phase: TargetPhase = TargetPhase.WAITING,
    holders: tuple[Holder, ...] = (),
) -> TargetReport | None:
    """Describe the target that something is reserved for; None: nothing is."""
    shadow = observation.current
    if shadow is None:
        return None
    grant = observation.grant_of(shadow)
    # Devices are named only where they open, or where processes are ended that have them open.
    is_named = grant is not None and (is_granted(grant) or grant.phase is GrantPhase.BUSY)
    named = grant if is_named else None
    return TargetReport(
        pod_uid=shadow.place.target_uid,
        node=shadow.place.node or None,
        container=known_container(observation, shadow.place.target_uid),
        container_id=named.container_id if named else None,
        phase=phase,
        shadow_pods=(shadow.name,),
        devices=named.devices if named else (),
        holders=holders,
        granted_wall=named.granted_wall if named else None,
        concerns=named.concerns if named else (),
        is_reserved=grant is not None and bool(grant.devices) and grant.phase not in _GIVEN_AWAY,
    )


def bare_target(observation: Observation, pod: TargetPod) -> TargetReport:
    """Describe a target pod for which nothing is reserved."""
    return TargetReport(
        pod_uid=pod.uid,
        node=pod.node,
        container=known_container(observation, pod.uid),
        container_id=None,
        phase=TargetPhase.WAITING,
        shadow_pods=(),
    )


def recent(observation: Observation) -> Setback | None:
    """Return the last setback, unless a long calm lies between."""
    setback = observation.setback
    if setback is None or observation.now - setback.until > CALM_S:
        return None
    return setback


def is_said_to_be_ready(observation: Observation) -> bool:
    """Say whether status still promises that the devices open."""
    conditions = observation.mount.status.conditions
    return any(c.type == "Ready" and c.status == "True" for c in conditions)
