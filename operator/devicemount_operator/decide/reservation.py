# SPDX-License-Identifier: Apache-2.0
"""The reservation: the shadow pods that ask scheduler and kubelet for this mount's devices, one for
what is missing whenever something is.

Lost, left over, refused, missing, not placed, not running: each is one check, and what happens to
one shadow pod does not concern the others. What costs a pod backs off.
"""

from collections.abc import Mapping
from typing import Final

from devicemount_operator import reasons, shadow_pod
from devicemount_operator.decide import outcome, release
from devicemount_operator.decide.decision import (
    AddFinalizer,
    CreateShadowPod,
    Decision,
    DeleteShadowPod,
    Remove,
    RemovePolicy,
    Report,
    StartApply,
)
from devicemount_operator.decide.fit import fit
from devicemount_operator.decide.needs import unplaced
from devicemount_operator.decide.observation import (
    FINALIZER,
    Observation,
    Place,
    PodUID,
    ShadowPod,
    TargetPod,
    choice,
    is_ending,
)
from devicemount_operator.decide.text import listing
from devicemount_operator.reasons import Reason

HOLD_DOWN_S: Final = 25.0  # the fence stands only while `hold` runs; the agent acts after 20 s
UNSEEN_S: Final = 30.0  # no scheduler has said a word about the pod
YIELD_S: Final = 5.0  # given up when it is not placed by then, where others wait for their turn
RETRY_S: Final = 10.0  # while a scheduler refuses: is the target still there?

# Why a kubelet rejects a pod; of either kind also OutOf<resource>.
_TOO_FEW = ("UnexpectedAdmissionError", "TopologyAffinityError")
_NO_ROOM = ("Evicted", "NodeAffinity", "TaintToleration", "NodeShutdown", "Preempting")


def remains(observation: Observation) -> Decision | None:
    """A shadow pod is deleted and stays, held by somebody's finalizer, while the mount has all that
    it wants: have it proved once that nothing can be used by it, and say nothing."""
    named = {name for row in observation.mount.status.targets for name in row.shadow_pods}
    kept = tuple(
        (shadow.place, shadow.uid)
        for shadow in observation.ours
        if shadow.deleting
        and release.is_lost(observation, shadow)
        and observation.grant_of(shadow) is None
        and shadow.name not in named
    )
    if not kept or not observation.standing or not fit(observation).is_exact:
        return None
    return Decision(actions=release.give_up(kept), requeue_after_s=0.0, setback=observation.setback)


def ended(observation: Observation) -> Decision | None:
    """Shadow pods are deleted by others, failed or gone: revoke exactly theirs, then pause."""
    lost = release.lost(observation)
    if not lost:
        return None
    reason, fact = _loss(observation, {uid for _, uid in lost})
    return outcome.fails(
        observation,
        reason=reason,
        fact=fact,
        actions=(
            *release.give_up(lost),
            *(
                DeleteShadowPod(name=shadow.name, uid=shadow.uid)
                for shadow in observation.ours
                if release.is_lost(observation, shadow) and not shadow.deleting
            ),
        ),
        target=outcome.reserved_target(_unlost(observation)),
    )


def forgotten(observation: Observation) -> Decision | None:
    """Status names a shadow pod of which nothing else is known: revoke what may be left of it."""
    places = release.forgotten(observation)
    if not places:
        return None
    return outcome.waits(
        observation,
        reason=Reason.RESERVATION_LOST,
        fact="the shadow pod that status names is gone",
        actions=release.give_up_places(places),
        requeue_after_s=0.0,
    )


def left_over(observation: Observation) -> Decision | None:
    """Shadow pods that are given back, or were made for a former target pod, still stand."""
    done = tuple(
        DeleteShadowPod(name=shadow.name, uid=shadow.uid)
        for shadow in observation.ours
        if observation.is_released(shadow) and not shadow.deleting
    )
    pod = observation.target
    former = (
        release.give_back_former(observation, target_uid=pod.uid)
        if isinstance(pod, TargetPod)
        else ()
    )
    actions = tuple(dict.fromkeys((*done, *former)))
    if not actions:
        return None
    return outcome.waits(
        observation,
        reason=Reason.RESERVING,
        fact="a former shadow pod is given back",
        actions=actions,
        requeue_after_s=0.0,
    )


def in_the_way(observation: Observation) -> Decision | None:
    """No scheduler places a shadow pod, and others wait for their turn, for which it stands."""
    shadow = unplaced(observation)
    if shadow is None or _may_stand_s(observation, shadow) > 0:
        return None
    found = _refusal_to_place(observation, shadow)
    if found is None:
        return None
    reason, fact = found
    return _discarded(observation, reason=reason, fact=fact, shadows=(shadow,))


def missing(observation: Observation) -> Decision | None:
    """Not all is reserved: make one shadow pod for the rest, and ask the agent without waiting for
    it to run."""
    lacking = fit(observation).lacking
    if not lacking:
        return None
    if observation.held_back_s and observation.setback is not None:
        return outcome.held_back(observation, observation.setback)
    pod = observation.target
    container = choice(observation.mount.spec.target, pod) if isinstance(pod, TargetPod) else None
    if not isinstance(pod, TargetPod) or pod.node is None or container is None:
        return Decision(requeue_after_s=0.0, setback=observation.setback)  # read the target first
    ordinal = free_ordinal(observation, pod.uid)
    if ordinal is None:
        return outcome.fails(
            observation,
            reason=Reason.NOT_ALLOWED,
            fact=f"the names of {shadow_pod.MAX_ORDINALS} shadow pods are taken",
        )
    lacks = FINALIZER not in observation.mount.metadata.finalizers
    apply = StartApply(
        place=Place(node=pod.node, target_uid=pod.uid),
        container=container.name,
        container_id=container.container_id,
        shadow_uids=tuple(shadow.uid for shadow in observation.standing),
    )
    return Decision(
        actions=(
            CreateShadowPod(ordinal, lacking),
            *(() if _must_run_first(observation) else (apply,)),
            *((AddFinalizer(),) if lacks else ()),
        ),
        report=_reserving(observation, lacking) if outcome.breaks_promise(observation) else None,
        requeue_after_s=outcome.PATIENCE_S,
        setback=observation.setback,
    )


def not_placed(observation: Observation) -> Decision | None:
    """A scheduler refuses a shadow pod, is kept from it by a gate, or has not looked at it."""
    shadow = unplaced(observation)
    if shadow is None:
        return None
    found = _refusal_to_place(observation, shadow)
    if found is None:
        return None
    reason, fact = found
    return outcome.waits(
        observation,
        reason=reason,
        fact=fact,
        requeue_after_s=min(RETRY_S, _may_stand_s(observation, shadow)),
        target=outcome.reserved_target(observation),
    )


def served_by_dra(observation: Observation) -> Decision | None:
    """The devices come from a ResourceClaim, of which the kubelet's plugin answers know nothing."""
    served = tuple(shadow for shadow in observation.standing if shadow.claim)
    if not served:
        return None
    claim, name = served[0].claim, served[0].name
    return outcome.fails(
        observation,
        reason=Reason.ALLOCATED_BY_DRA,
        fact=f"ResourceClaim {claim} serves the devices of shadow pod {name}",
        actions=release.give_back_some(observation, served),
        target=outcome.reserved_target(outcome.without(observation, served)),
    )


def unguarded(observation: Observation) -> Decision | None:
    """`hold` has not run for too long: without the fence nothing may be granted."""
    shadows = tuple(s for s in observation.standing if is_unguarded(observation, s))
    if not shadows:
        return None
    shadow = shadows[0]
    why = f": {shadow.hold_text}" if shadow.hold_text else ""
    return _discarded(
        observation,
        reason=Reason.SHADOW_NOT_RUNNING,
        fact=f"shadow pod {shadow.name} has not run for {HOLD_DOWN_S:.0f} s{why}",
        shadows=shadows,
    )


def is_unguarded(observation: Observation, shadow: ShadowPod) -> bool:
    """Say whether `hold` was not seen running for too long."""
    since = shadow.hold_down_since
    return since is not None and observation.now - since >= HOLD_DOWN_S


def must_run_first(observation: Observation, shadow: ShadowPod) -> bool:
    """Say whether nothing may be granted yet, since the last shadow pod did not run either."""
    runs = shadow.scheduled and shadow.hold_down_since is None
    return _must_run_first(observation) and not runs


def discard(shadow: ShadowPod) -> tuple[Remove, DeleteShadowPod]:
    """Return what ends a worthless reservation: revoke what was granted, delete the pod."""
    return (
        Remove(place=shadow.place, policy=RemovePolicy.LOST, shadow_uids=(shadow.uid,)),
        DeleteShadowPod(name=shadow.name, uid=shadow.uid),
    )


def _discarded(
    observation: Observation, *, reason: Reason, fact: str, shadows: tuple[ShadowPod, ...]
) -> Decision:
    """Fail for the sake of these shadow pods; the others stay what they are."""
    return outcome.fails(
        observation,
        reason=reason,
        fact=fact,
        actions=tuple(action for shadow in shadows for action in discard(shadow)),
        target=outcome.reserved_target(outcome.without(observation, shadows)),
    )


def free_ordinal(observation: Observation, target_uid: PodUID) -> int | None:
    """Return the first ordinal whose name no pod that we know has."""
    taken = {
        shadow_pod.ordinal_of(shadow.name)
        for shadow in observation.shadows
        if shadow.place.target_uid == target_uid
    }
    return next((n for n in range(shadow_pod.MAX_ORDINALS) if n not in taken), None)


def _reserving(observation: Observation, lacking: Mapping[str, int]) -> Report:
    names = listing([f"{count} {name}" for name, count in sorted(lacking.items())])
    return Report(
        reason=Reason.RESERVING,
        message=reasons.message(Reason.RESERVING, f"{names} is being reserved"),
        target=outcome.reserved_target(observation),
    )


def _unlost(observation: Observation) -> Observation:
    gone = [shadow for shadow in observation.ours if release.is_lost(observation, shadow)]
    return outcome.without(observation, gone)


def _must_run_first(observation: Observation) -> bool:
    setback = outcome.recent(observation)
    return setback is not None and setback.reason is Reason.SHADOW_NOT_RUNNING


def _loss(observation: Observation, uids: set[PodUID]) -> tuple[Reason, str]:
    """Say what happened to the first of them; once granted, it is a loss whatever ended it."""
    for grant in observation.agent.grants:
        if grant.shadow_uid in uids and grant.lost is not None and grant.lost.message:
            did_not_run = grant.lost.reason == Reason.SHADOW_NOT_RUNNING.value
            reason = Reason.SHADOW_NOT_RUNNING if did_not_run else Reason.RESERVATION_LOST
            return reason, grant.lost.message
    granted = {g.shadow_uid for g in observation.agent.grants if g.devices}
    shadow = next((s for s in observation.ours if s.uid in uids), None)
    if shadow is None:
        return Reason.RESERVATION_LOST, "the shadow pod is gone"
    if not is_ending(shadow):
        return Reason.RESERVATION_LOST, f"the device of shadow pod {shadow.name} is another's now"
    if shadow.deleting:
        why = f" ({shadow.disruption})" if shadow.disruption else ""
        return Reason.RESERVATION_LOST, f"shadow pod {shadow.name} was deleted or evicted{why}"
    text = ": ".join(part for part in (shadow.failure, shadow.failure_text) if part)
    fact = f"shadow pod {shadow.name} has ended ({text or shadow.phase.value})"
    if shadow.uid in granted:
        return Reason.RESERVATION_LOST, fact
    return _of_rejection(shadow), fact


def _of_rejection(shadow: ShadowPod) -> Reason:
    """Tell whether the kubelet has too few devices, has no room, or let it come and it ended."""
    missing = shadow.failure.removeprefix("OutOf")
    if shadow.failure in _TOO_FEW or missing in shadow.resources:
        return Reason.INSUFFICIENT
    is_rejected = missing != shadow.failure or shadow.failure in _NO_ROOM
    return Reason.UNSCHEDULABLE if is_rejected else Reason.SHADOW_NOT_RUNNING


def _refusal_to_place(observation: Observation, shadow: ShadowPod) -> tuple[Reason, str] | None:
    if shadow.gates:
        gates = ", ".join(shadow.gates)
        return Reason.UNSCHEDULABLE, f"shadow pod {shadow.name} is held by scheduling gate {gates}"
    if not shadow.scheduler_text:
        if observation.now - shadow.seen < UNSEEN_S:
            return None
        scheduler = shadow.scheduler
        fact = f"no scheduler {scheduler} has looked at shadow pod {shadow.name}"
        return Reason.UNSCHEDULABLE, fact
    if (shortage := _shortage(observation, shadow)) is not None:
        return shortage
    counts = shadow.resources
    short = [name for name in counts if f"Insufficient {name}" in shadow.scheduler_text]
    if short:
        wanted = ", ".join(f"{counts[name]} {name}" for name in short)
        short_of = f"node {shadow.place.node} has too few free: {wanted} asked for"
        fact = f"{short_of} ({shadow.scheduler_text})"
        return Reason.INSUFFICIENT, fact
    return Reason.UNSCHEDULABLE, f"the scheduler says: {shadow.scheduler_text}"


def _may_stand_s(observation: Observation, shadow: ShadowPod) -> float:
    """Return for how long a shadow pod that is not placed keeps nobody waiting unduly."""
    if observation.turn is None or not observation.turn.is_awaited:
        return RETRY_S
    return max(0.0, shadow.seen + YIELD_S - observation.now)


def _shortage(observation: Observation, shadow: ShadowPod) -> tuple[Reason, str] | None:
    """Say what the node can never give, however idle it is."""
    node = observation.node
    if node is None or node.is_deleted or node.name != shadow.place.node:
        return None
    has = node.allocatable
    absent = {fact.resource: fact.driver_missing for fact in observation.facts or ()}
    for name in shadow.resources:
        count = observation.mount.spec.resources.limits.get(name, 0)
        if not has.get(name) and (lacks := absent.get(name)):
            fact = f"node {shadow.place.node} offers no {name}: {lacks}"
            return Reason.DRIVER_MISSING, fact
        if name not in has:
            return Reason.RESOURCE_UNKNOWN, f"node {shadow.place.node} does not offer {name}"
        if has[name] < count:
            fact = f"node {shadow.place.node} has {has[name]} {name} in all: {count} asked for"
            return Reason.INSUFFICIENT, fact
    return None


def guard_check_in_s(observation: Observation) -> float | None:
    """Return when to look whether every `hold` runs, or None while they do."""
    down = [s.hold_down_since for s in observation.standing if s.hold_down_since is not None]
    return max(0.0, min(down) + HOLD_DOWN_S - observation.now) if down else None
