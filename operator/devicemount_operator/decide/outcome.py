# SPDX-License-Identifier: Apache-2.0
"""The few shapes that a Decision has: something is reported and waited for, or an attempt failed
and backs off.

Checks decide which; here is only how a setback counts and what status says of the target.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from devicemount_operator import reasons
from devicemount_operator.decide.decision import (
    Action,
    Decision,
    Report,
    TargetPhase,
    TargetReport,
)
from devicemount_operator.decide.fit import fit
from devicemount_operator.decide.observation import (
    GrantPhase,
    Holder,
    Observation,
    Setback,
    ShadowPod,
    TargetPod,
    holds,
    is_granted,
    known_container,
)
from devicemount_operator.reasons import TABLE, Reason

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
        generation=observation.mount.metadata.generation,
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
    """Say again what the last setback was, until its pause is over.

    Of a busy device status stays as the attempt left it: who has it, only the next one finds out.
    """
    is_told = setback.reason is Reason.DEVICE_BUSY and not breaks_promise(observation)
    report = Report(
        reason=setback.reason, message=setback.message, target=reserved_target(observation)
    )
    return Decision(
        report=None if is_told else report,
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
    shadows = _of_one_target(observation)
    if not shadows:
        return None
    place = shadows[0].place
    grants = [observation.grant_of(shadow) for shadow in shadows]
    # Devices are named only where they open, or where processes are ended that have them open.
    named = [g for g in grants if g and (is_granted(g) or g.phase is GrantPhase.BUSY)]
    is_whole = not fit(observation).lacking
    return TargetReport(
        pod_uid=place.target_uid,
        node=place.node or None,
        container=known_container(observation, place.target_uid),
        container_id=next((grant.container_id for grant in named), None),
        phase=phase,
        shadow_pods=tuple(shadow.name for shadow in shadows),
        devices=tuple(device for grant in named for device in grant.devices),
        holders=holders,
        granted_wall=min((g.granted_wall for g in named if g.granted_wall), default=None),
        concerns=tuple(dict.fromkeys(concern for grant in named for concern in grant.concerns)),
        is_reserved=is_whole and all(map(holds, grants)),
        is_grafted=is_whole and all(map(is_granted, grants)),
    )


def without(observation: Observation, shadows: Iterable[ShadowPod]) -> Observation:
    """Return what will be so when these shadow pods are gone."""
    gone = {shadow.uid for shadow in shadows}
    rest = tuple(shadow for shadow in observation.shadows if shadow.uid not in gone)
    return replace(observation, shadows=rest)


def target_of(observation: Observation, pod: TargetPod) -> TargetReport:
    """Describe that target pod, with what is reserved for it if anything is."""
    reserved = reserved_target(observation)
    return reserved if reserved is not None else bare_target(observation, pod)


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


def breaks_promise(observation: Observation) -> bool:
    """Say whether status still promises that devices open which do not (all) any more."""
    status = observation.mount.status
    if not any(c.type == "Ready" and c.status == "True" for c in status.conditions):
        return False
    named = {name for row in status.targets for name in row.shadow_pods}
    return not named or not named <= {shadow.name for shadow in observation.granted}


def _of_one_target(observation: Observation) -> tuple[ShadowPod, ...]:
    """Return what stands for the target pod, or while a former one's is not given back, that."""
    standing, pod = observation.standing, observation.target
    uids = [shadow.place.target_uid for shadow in standing]
    uid = pod.uid if isinstance(pod, TargetPod) and pod.uid in uids else next(iter(uids), None)
    return tuple(shadow for shadow in standing if shadow.place.target_uid == uid)
