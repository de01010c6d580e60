# SPDX-License-Identifier: Apache-2.0
"""From a reservation to devices that open: the agent refuses, succeeds, or is to be asked."""

from typing import Final

from devicemount_operator import reasons
from devicemount_operator.decide import outcome, release, reservation
from devicemount_operator.decide.decision import (
    Action,
    Decision,
    Report,
    StartApply,
    TargetPhase,
)
from devicemount_operator.decide.observation import (
    GrantPhase,
    Observation,
    Refusal,
    Setback,
    ShadowPod,
    TargetPod,
    choice,
    is_granted,
)
from devicemount_operator.decide.text import listing
from devicemount_operator.reasons import TABLE, Kind, Reason

# The kubelet's choice is final for a pod: only another pod can get another one.
_NEEDS_ANOTHER_POD = frozenset({Reason.INSUFFICIENT, Reason.RESERVATION_LOST})

_LOSSES = frozenset({Reason.RESERVATION_LOST, Reason.SHADOW_NOT_RUNNING})

BLOCKED_S: Final = 15.0  # the agent tells when it is over; this is for the case that it does not
REGRAFT_S: Final = 3.0  # the agent grafts a container's next run by itself; then it is asked to


def blocked(observation: Observation) -> Decision | None:
    """Access was taken away, and the agent says why it cannot give it again yet: it goes on trying,
    and what is reserved stays so."""
    shadow = observation.current
    grant = observation.grant_of(shadow) if shadow else None
    if grant is None or grant.phase is not GrantPhase.WAITING:
        return None
    for concern in grant.concerns:
        if (reason := reasons.trouble(concern.reason)) is not None:
            return outcome.waits(
                observation,
                reason=reason,
                fact=concern.message,
                requeue_after_s=BLOCKED_S,
                target=outcome.reserved_target(observation),
            )
    return None


def refused(observation: Observation) -> Decision | None:
    """The agent refused the last Apply: count it once, then wait for the pause to end."""
    shadow, refusal = observation.current, observation.agent.refusal
    if shadow is None or is_granted(observation.grant_of(shadow)):
        return None
    setback = observation.setback
    if refusal is not None and (setback is None or setback.at < refusal.at):
        actions = _after(refusal, observation, shadow)
        return outcome.fails(
            observation,
            reason=refusal.reason,
            fact=refusal.message,
            actions=actions,
            target=None if actions else outcome.reserved_target(observation),
        )
    if setback is not None and observation.held_back_s:
        return outcome.held_back(observation, setback)
    return None


def granted(observation: Observation) -> Decision | None:
    """The devices open in the target container, as its agent has verified."""
    shadow = observation.current
    grant = observation.grant_of(shadow) if shadow else None
    if shadow is None or grant is None or not is_granted(grant):
        return None
    target = outcome.reserved_target(observation, phase=TargetPhase.MOUNTED)
    names = listing([f"{device.resource} {device.id}" for device in grant.devices])
    opens = "opens" if len(grant.devices) == 1 else "open"
    fact = f"{names} {opens} in container {target.container if target else None}"
    if files := dict.fromkeys(d.env_file for d in grant.devices if d.env_file):
        fact += f", where {listing(tuple(files))} has the environment that it needs"
    for concern in grant.concerns:
        if reasons.is_note(concern.reason):
            fact += f". {concern.message.rstrip('. ')}"
    return Decision(
        report=Report(
            reason=Reason.MOUNTED, message=reasons.message(Reason.MOUNTED, fact), target=target
        ),
        requeue_after_s=reservation.guard_check_in_s(observation, shadow),
        setback=_of_losses(observation),
    )


def asked(observation: Observation) -> Decision | None:
    """The agent is at work, or is to be asked: said once it takes long or Ready is untrue."""
    shadow = observation.current
    if shadow is None:
        return None
    actions: tuple[Action, ...] = ()
    if observation.agent.applying != shadow.uid and _may_ask(observation, shadow):
        apply = _apply(observation, shadow)
        if apply is None:
            return Decision(
                requeue_after_s=0.0, setback=observation.setback
            )  # read the target first
        actions = (apply,)
    return Decision(
        actions=actions,
        report=_progress(observation, shadow),
        requeue_after_s=_next_look_s(observation, shadow),
        setback=observation.setback,
    )


def _of_losses(observation: Observation) -> Setback | None:
    """Keep the count of reservations that were lost: what took the last may take the next."""
    setback = outcome.recent(observation)
    return setback if setback is not None and setback.reason in _LOSSES else None


def _may_ask(observation: Observation, shadow: ShadowPod) -> bool:
    unguarded = reservation.must_run_first(observation, shadow)
    return not unguarded and not _regrafts_s(observation, shadow)


def _regrafts_s(observation: Observation, shadow: ShadowPod) -> float:
    """Return for how long the agent is left alone: it grafts a container's next run by itself."""
    ended = observation.agent.ended.get(shadow.uid)
    return 0.0 if ended is None else max(0.0, ended + REGRAFT_S - observation.now)


def _after(refusal: Refusal, observation: Observation, shadow: ShadowPod) -> tuple[Action, ...]:
    """Return what a refusal costs: the pod, the whole reservation, or nothing."""
    if refusal.reason in _NEEDS_ANOTHER_POD:
        return reservation.discard(shadow)
    if TABLE[refusal.reason].kind is Kind.PERMANENT:
        return release.give_back(observation)
    return ()


def _apply(observation: Observation, shadow: ShadowPod) -> StartApply | None:
    pod = observation.target
    container = choice(observation.mount.spec.target, pod) if isinstance(pod, TargetPod) else None
    if container is None:
        return None
    return StartApply(
        place=shadow.place,
        container=container.name,
        container_id=container.container_id,
        shadow_uid=shadow.uid,
    )


def _progress(observation: Observation, shadow: ShadowPod) -> Report | None:
    """Say what is waited for; silent while it is quick or the last setback explains it."""
    grant = observation.grant_of(shadow)
    interrupted = outcome.is_said_to_be_ready(observation)
    patient = observation.now - shadow.seen < outcome.PATIENCE_S
    if not interrupted and (patient or observation.setback is not None):
        return None
    ended = grant is not None and grant.phase is GrantPhase.TARGET_ENDED
    if ended:
        reason = Reason.GRAFTING
        fact = (
            f"its container has ended, and shadow pod {shadow.name} keeps the devices for the next"
        )
    elif shadow.scheduled:
        reason, fact = Reason.GRAFTING, f"shadow pod {shadow.name} holds the devices"
    else:
        reason, fact = Reason.RESERVING, f"shadow pod {shadow.name} waits for its node"
    return Report(
        reason=reason,
        message=reasons.message(reason, fact),
        target=outcome.reserved_target(observation),
    )


def _next_look_s(observation: Observation, shadow: ShadowPod) -> float | None:
    """Return the earliest moment at which time alone changes what is said."""
    age_s = observation.now - shadow.seen
    moments = [outcome.PATIENCE_S - age_s, _regrafts_s(observation, shadow)]
    if not shadow.scheduled:
        moments.append(reservation.UNSEEN_S - age_s)
    if (guard_s := reservation.guard_check_in_s(observation, shadow)) is not None:
        moments.append(guard_s)
    return min((moment for moment in moments if moment > 0), default=None)
