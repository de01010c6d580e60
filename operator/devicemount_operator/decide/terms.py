# SPDX-License-Identifier: Apache-2.0
"""On which terms a shadow pod may be made: what is wrong with a mount is said before it costs a
pod.

What the node's profiles refuse or want accepted, what spec.reservation may ask for, and whose turn
it is where a vendor's plugin can tell only one pod at a time from another.
"""

from typing import Final

from devicemount_operator.decide import outcome
from devicemount_operator.decide.decision import Decision
from devicemount_operator.decide.needs import to_reserve
from devicemount_operator.decide.observation import Observation, TargetPod
from devicemount_operator.decide.text import listing
from devicemount_operator.reasons import Reason

TURN_S: Final = 5.0  # a turn is told of at once; this is for the case that it is not


def unmet(observation: Observation) -> Decision | None:
    """The node's profiles or the cluster's rules do not let this mount have what it asks for."""
    pod = to_reserve(observation)
    if pod is None or (found := objection(observation, pod)) is None:
        return None
    reason, fact = found
    return outcome.fails(
        observation, reason=reason, fact=fact, target=outcome.target_of(observation, pod)
    )


def out_of_turn(observation: Observation) -> Decision | None:
    """Another shadow pod of a serialised resource is on its way: one at a time on a node."""
    pod, turn = to_reserve(observation), observation.turn
    if pod is None or turn is None or not turn.ahead:
        return None
    waited_s = observation.now - turn.since
    if waited_s < outcome.PATIENCE_S and not outcome.breaks_promise(observation):
        return Decision(requeue_after_s=outcome.PATIENCE_S - waited_s, setback=observation.setback)
    names = ", ".join(fact.resource for fact in observation.facts or () if fact.serialised)
    return outcome.waits(
        observation,
        reason=Reason.RESERVING,
        fact=f"{names} is given to one pod of node {pod.node} at a time, and {turn.ahead} is first",
        requeue_after_s=TURN_S,
        target=outcome.target_of(observation, pod),
    )


def objection(observation: Observation, pod: TargetPod) -> tuple[Reason, str] | None:
    """Return why a shadow pod for this target would be in vain or must not be."""
    accepts = observation.mount.spec.reservation.accept_env_file
    for fact in observation.facts or ():
        if fact.refused:
            return Reason.UNSUPPORTED_RESOURCE, f"{fact.resource}: {fact.refused}"
        if fact.env_only and not accepts:
            return Reason.ENV_FILE_NEEDED, f"{fact.resource}: {fact.env_only}"
    return _foreign_annotation(observation) or _too_important(observation, pod)


def _foreign_annotation(observation: Observation) -> tuple[Reason, str] | None:
    allowed = observation.allowed_annotations
    keys = observation.mount.spec.reservation.annotations
    foreign = sorted(key for key in keys if key not in allowed)
    if not foreign:
        return None
    known = ", ".join(sorted(allowed)) or "none"
    fact = f"annotations of spec.reservation that are not allowed: {listing(foreign)}"
    return Reason.RESERVATION_NOT_ALLOWED, f"{fact}; allowed: {known}"


def _too_important(observation: Observation, pod: TargetPod) -> tuple[Reason, str] | None:
    named = observation.priority_class
    if named is None:
        return None
    if named.value is None:
        return Reason.RESERVATION_NOT_ALLOWED, f"PriorityClass {named.name} does not exist"
    own = pod.priority or 0
    if named.value <= own:
        return None
    fact = f"PriorityClass {named.name} ({named.value}) is above the priority of pod {pod.name}"
    return Reason.RESERVATION_NOT_ALLOWED, f"{fact} ({own})"
