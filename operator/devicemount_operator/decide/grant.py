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
from devicemount_operator.decide.fit import fit
from devicemount_operator.decide.observation import (
    GrantPhase,
    Observation,
    Place,
    Refusal,
    Setback,
    ShadowPod,
    TargetPod,
    choice,
)
from devicemount_operator.decide.text import listing
from devicemount_operator.reasons import TABLE, Kind, Reason

# The kubelet's choice is final for a pod: only another pod can get another one.
_NEEDS_ANOTHER_POD = frozenset({Reason.INSUFFICIENT, Reason.RESERVATION_LOST})

_LOSSES = frozenset({Reason.RESERVATION_LOST, Reason.SHADOW_NOT_RUNNING})

BLOCKED_S: Final = 15.0  # the agent tells when it is over; this is for the case that it does not
MISSED_S: Final = 15.0  # the same: what opens opens meanwhile
REGRAFT_S: Final = 3.0  # the agent grafts a container's next run by itself; then it is asked to


def blocked(observation: Observation) -> Decision | None:
    """Access was taken away, and the agent says why it cannot give it again yet: it goes on trying,
    and what is reserved stays so."""
    for shadow in observation.standing:
        grant = observation.grant_of(shadow)
        if grant is None or grant.phase is not GrantPhase.WAITING:
            continue
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
    refusal, shadows = observation.agent.refusal, _not_granted(observation)
    if not shadows:
        return None
    setback = observation.setback
    if refusal is not None and (setback is None or setback.at < refusal.at):
        given_up = _given_up(observation, refusal, shadows)
        rest = outcome.without(observation, given_up)
        return outcome.fails(
            observation,
            reason=refusal.reason,
            fact=refusal.message,
            actions=_giving_up(observation, refusal, given_up),
            target=outcome.reserved_target(rest),
        )
    if setback is not None and observation.held_back_s:
        return outcome.held_back(observation, setback)
    return None


def granted(observation: Observation) -> Decision | None:
    """All that is wanted opens in the target container, as its agent has verified."""
    target = outcome.reserved_target(observation, phase=TargetPhase.MOUNTED)
    if target is None or _not_granted(observation) or not fit(observation).is_exact:
        return None
    names = listing([f"{device.resource} {device.id}" for device in target.devices])
    opens = "opens" if len(target.devices) == 1 else "open"
    fact = f"{names} {opens} in container {target.container}"
    if files := dict.fromkeys(d.env_file for d in target.devices if d.env_file):
        fact += f", where {listing(tuple(files))} has the environment that it needs"
    for concern in target.concerns:
        if reasons.is_note(concern.reason):
            fact += f". {concern.message.rstrip('. ')}"
    return Decision(
        actions=_telling(observation),
        report=Report(
            reason=Reason.MOUNTED, message=reasons.message(Reason.MOUNTED, fact), target=target
        ),
        requeue_after_s=_later_s(observation),
        setback=_of_losses(observation),
    )


def asked(observation: Observation) -> Decision | None:
    """The agent is at work, or is to be asked: said once it takes long or Ready is untrue."""
    shadows = _not_granted(observation)
    if not shadows:
        return None
    actions: tuple[Action, ...] = ()
    if _may_ask(observation, shadows):
        apply = _apply(observation, shadows[0].place)
        if apply is None:
            return Decision(
                requeue_after_s=0.0, setback=observation.setback
            )  # read the target first
        actions = (apply,)
    return Decision(
        actions=actions,
        report=_progress(observation, shadows[-1]),
        requeue_after_s=_next_look_s(observation, shadows),
        setback=observation.setback,
    )


def _telling(observation: Observation) -> tuple[Action, ...]:
    """Apply what stands where its agent misses something: what is not wanted any more, or what was
    so before the agent was restarted. Until then the container has no ready file."""
    standing, agent = observation.standing, observation.agent
    grant = observation.grant_of(standing[0])
    uids = tuple(shadow.uid for shadow in standing)
    if grant is None or not _is_missed(observation) or agent.applying == set(uids):
        return ()
    is_recent = agent.asked_at is not None and observation.now < agent.asked_at + MISSED_S
    if is_recent and agent.asked == set(uids):
        return ()
    return (
        StartApply(
            place=standing[0].place,
            container=grant.container,
            container_id=grant.container_id,
            shadow_uids=uids,
        ),
    )


def _is_missed(observation: Observation) -> bool:
    grants = map(observation.grant_of, observation.standing)
    return any(grant is not None and grant.incomplete for grant in grants)


def _later_s(observation: Observation) -> float | None:
    """Return when time alone changes what is to be done of what is mounted."""
    guard_s = reservation.guard_check_in_s(observation)
    missed_s = MISSED_S if _is_missed(observation) else None
    return min((s for s in (guard_s, missed_s) if s is not None), default=None)


def _not_granted(observation: Observation) -> tuple[ShadowPod, ...]:
    granted = observation.granted
    return tuple(shadow for shadow in observation.standing if shadow not in granted)


def _of_losses(observation: Observation) -> Setback | None:
    """Keep the count of reservations that were lost: what took the last may take the next."""
    setback = outcome.recent(observation)
    return setback if setback is not None and setback.reason in _LOSSES else None


def _may_ask(observation: Observation, shadows: tuple[ShadowPod, ...]) -> bool:
    if observation.agent.applying == {shadow.uid for shadow in observation.standing}:
        return False
    unguarded = any(reservation.must_run_first(observation, shadow) for shadow in shadows)
    return not unguarded and not any(_regrafts_s(observation, shadow) for shadow in shadows)


def _regrafts_s(observation: Observation, shadow: ShadowPod) -> float:
    """Return for how long the agent is left alone: it grafts a container's next run by itself."""
    ended = observation.agent.ended.get(shadow.uid)
    return 0.0 if ended is None else max(0.0, ended + REGRAFT_S - observation.now)


def _given_up(
    observation: Observation, refusal: Refusal, shadows: tuple[ShadowPod, ...]
) -> tuple[ShadowPod, ...]:
    """Return what a refusal costs: nothing, those that failed, or all that is not granted.

    What was granted to a container that has ended is the mount's still, and has not failed.
    """
    if refusal.reason in _NEEDS_ANOTHER_POD:
        kept = (GrantPhase.TARGET_ENDED, GrantPhase.BUSY)
        grants = [(shadow, observation.grant_of(shadow)) for shadow in shadows]
        return tuple(shadow for shadow, g in grants if g is None or g.phase not in kept)
    return shadows if TABLE[refusal.reason].kind is Kind.PERMANENT else ()


def _giving_up(
    observation: Observation, refusal: Refusal, shadows: tuple[ShadowPod, ...]
) -> tuple[Action, ...]:
    if refusal.reason in _NEEDS_ANOTHER_POD:
        return tuple(action for shadow in shadows for action in reservation.discard(shadow))
    return release.give_back_some(observation, shadows)


def _apply(observation: Observation, place: Place) -> StartApply | None:
    """Name all that stands there: the agent takes what is not named for lost or forgotten."""
    pod = observation.target
    container = choice(observation.mount.spec.target, pod) if isinstance(pod, TargetPod) else None
    if container is None:
        return None
    return StartApply(
        place=place,
        container=container.name,
        container_id=container.container_id,
        shadow_uids=tuple(shadow.uid for shadow in observation.standing if shadow.place == place),
    )


def _progress(observation: Observation, shadow: ShadowPod) -> Report | None:
    """Say what is waited for; silent while it is quick or the last setback explains it."""
    grant = observation.grant_of(shadow)
    interrupted = outcome.breaks_promise(observation)
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


def _next_look_s(observation: Observation, shadows: tuple[ShadowPod, ...]) -> float | None:
    """Return the earliest moment at which time alone changes what is said."""
    moments = [observation.now + _regrafts_s(observation, shadow) for shadow in shadows]
    moments.append(shadows[-1].seen + outcome.PATIENCE_S)
    moments += [shadow.seen + reservation.UNSEEN_S for shadow in shadows if not shadow.scheduled]
    if (guard_s := reservation.guard_check_in_s(observation)) is not None:
        moments.append(observation.now + guard_s)
    waits_s = [moment - observation.now for moment in moments]
    return min((wait_s for wait_s in waits_s if wait_s > 0), default=None)
