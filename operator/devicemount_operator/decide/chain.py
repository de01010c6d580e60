# SPDX-License-Identifier: Apache-2.0
"""The decision: the first check that has an opinion wins. The order of the checks is the
specification.

First what ends (deletion, suspension, a lost reservation, what an edit leaves over), then what the
mount depends on (target, container, agent, the terms of a reservation), then the way up: reserve,
be placed, be guarded, be granted.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from devicemount_operator.decide import (
    drain,
    edits,
    grant,
    holders,
    lifetime,
    outcome,
    proof,
    release,
    reservation,
    target,
    terms,
)
from devicemount_operator.decide.decision import AddFinalizer, Decision, TargetPhase
from devicemount_operator.decide.observation import (
    FINALIZER,
    Observation,
    Refusal,
    is_granted,
    is_unwanted,
)
from devicemount_operator.reasons import TABLE, Reason

Check = Callable[[Observation], Decision | None]

ENDING_S: Final = 2.0  # the agent sends SIGKILL when it is asked after the grace

CHECKS: Final[tuple[Check, ...]] = (
    release.deletion,
    release.suspension,
    release.expiry,
    release.departure,
    reservation.remains,
    reservation.ended,
    reservation.forgotten,
    reservation.left_over,
    edits.moved,
    edits.too_many,
    reservation.in_the_way,
    target.outlived,
    target.absent,
    target.finished,
    target.undecided,
    target.not_running,
    target.without_agent,
    target.after_others,
    drain.draining,
    terms.unmet,
    terms.out_of_turn,
    reservation.missing,
    reservation.served_by_dra,
    reservation.not_placed,
    reservation.unguarded,
    grant.blocked,
    grant.refused,
    edits.impossible,
    grant.granted,
    grant.asked,
)


def decide(observation: Observation) -> Decision:
    """Say what is to be done. Pure and total: every Observation has a Decision."""
    decisions = (check(observation) for check in CHECKS)
    decision = next((decision for decision in decisions if decision is not None), Decision())
    if _lacks_finalizer(observation) and AddFinalizer() not in decision.actions:
        decision = replace(decision, actions=(AddFinalizer(), *decision.actions))
    return _in_time(observation, proof.accept(observation, decision))


def refused(observation: Observation, refusal: Refusal) -> Decision:
    """Say what follows when an action was refused: a report and a pause."""
    refusal = _explained(observation, refusal)
    busy = refusal.reason is Reason.DEVICE_BUSY
    if busy and (another := edits.finds_another(observation, refusal)) is not None:
        return another
    if not busy and grant.granted(observation) is not None and not is_unwanted(observation):
        return _undisturbed(observation, refusal)
    about = outcome.reserved_target(
        observation,
        phase=TargetPhase.RELEASING if busy else TargetPhase.WAITING,
        holders=refusal.holders,
    )
    decision = outcome.fails(
        observation,
        reason=refusal.reason,
        fact=holders.sentence(observation, refusal, about) if busy else refusal.message,
        target=about,
    )
    if holders.is_ending(refusal):
        decision = _soon(observation, decision)
    return decision.remembering(release.unproved(observation))


def _in_time(observation: Observation, decision: Decision) -> Decision:
    """Look again when spec.lifetime is over, if nothing else is to be looked at before."""
    granted = (g.granted_wall for g in observation.agent.grants if is_granted(g))
    first = min((wall for wall in granted if wall is not None), default=None)
    left_s = lifetime.left(observation.mount, steady=observation.steady, granted_wall=first)
    if left_s is None or is_unwanted(observation):
        return decision
    pauses = (pause for pause in (max(1.0, left_s), decision.requeue_after_s) if pause is not None)
    return replace(decision, requeue_after_s=min(pauses))


def _soon(observation: Observation, decision: Decision) -> Decision:
    """Let the next attempt come soon enough for the agent to end who is left."""
    setback = decision.setback
    if setback is None or setback.until <= observation.now + ENDING_S:
        return decision
    setback = replace(setback, until=observation.now + ENDING_S)
    return replace(decision, requeue_after_s=ENDING_S, setback=setback)


def _undisturbed(observation: Observation, refusal: Refusal) -> Decision:
    """Say only when to look again: the devices open, whatever else did not succeed."""
    pause_s = TABLE[refusal.reason].pace.first_s
    return Decision(requeue_after_s=pause_s, setback=observation.setback)


def _explained(observation: Observation, refusal: Refusal) -> Refusal:
    """Say what is behind an agent that cannot be asked: the node may not be lent to it any more."""
    fact = target.not_enabled(observation)
    if refusal.reason is not Reason.AGENT_UNAVAILABLE or fact is None:
        return refusal
    return replace(refusal, reason=Reason.NODE_NOT_ENABLED, message=fact)


def _lacks_finalizer(observation: Observation) -> bool:
    """Say whether a shadow pod stands for a live mount that could vanish without us."""
    meta = observation.mount.metadata
    alive = meta.deletion_timestamp is None
    return alive and FINALIZER not in meta.finalizers and bool(observation.ours)
