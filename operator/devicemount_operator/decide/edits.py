# SPDX-License-Identifier: Apache-2.0
"""Edits of what is mounted: the old goes when the new intent says so, as spec.unmount says, and
what is wanted still is never touched.

Giving back one of several looks first and takes nothing from a process, whatever spec.unmount says:
only when all that could go are in use are their processes ended, if they may be.
"""

from devicemount_operator.decide import outcome, release, reservation
from devicemount_operator.decide.decision import Decision, TargetPhase
from devicemount_operator.decide.fit import fit, is_busy
from devicemount_operator.decide.observation import Observation, Refusal, is_unwanted
from devicemount_operator.reasons import Reason

LOOK_AGAIN_S = 0.1  # others may be idle where these are in use


def moved(observation: Observation) -> Decision | None:
    """Another container of the target pod is meant now: what the former one has is given back."""
    elsewhere = fit(observation).moved
    if not elsewhere:
        return None
    return outcome.waits(
        observation,
        reason=Reason.RESERVING,
        fact="spec.target names another container, and the former one's devices are given back",
        actions=release.give_back_some(observation, elsewhere),
        requeue_after_s=0.0,
    )


def too_many(observation: Observation) -> Decision | None:
    """Less is wanted, or something else: whole shadow pods go, those first that hold nothing."""
    found = fit(observation)
    going = (*found.idle, *found.surplus)
    if not going:
        return None
    actions = tuple(a for s in going for a in release.give_back_one(observation, s))
    if len(going) == len(observation.standing):
        return outcome.waits(
            observation,
            reason=Reason.RESERVING,
            fact="spec.resources wants something else, and what was reserved is given back",
            actions=actions,
            requeue_after_s=0.0,
        )
    return Decision(actions=actions, requeue_after_s=0.0, setback=observation.setback)


def impossible(observation: Observation) -> Decision | None:
    """No whole shadow pods add up to what is to be given back: all that opens goes on opening."""
    problem = fit(observation).problem
    granted = observation.granted
    if not problem or granted != observation.standing:
        return None
    return outcome.waits(
        observation,
        reason=Reason.SHRINK_NOT_POSSIBLE,
        fact=problem,
        requeue_after_s=reservation.guard_check_in_s(observation),
        target=outcome.reserved_target(observation, phase=TargetPhase.MOUNTED),
    )


def finds_another(observation: Observation, refusal: Refusal) -> Decision | None:
    """One of several is in use: look at once whether others are not, which then go in its place."""
    surplus = () if is_unwanted(observation) else fit(observation).surplus
    if not refusal.holders or not surplus or any(is_busy(observation, s) for s in surplus):
        return None
    return Decision(requeue_after_s=LOOK_AGAIN_S, setback=observation.setback)
