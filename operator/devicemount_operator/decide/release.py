# SPDX-License-Identifier: Apache-2.0
"""Giving back: what is to be asked of which agent before a shadow pod may go, and the mount after
it.

The order is the promise: revoke and prove, then the shadow pod, then the finalizer. `act` stops at
the first refusal, so a device that is still open keeps everything that comes after it.
"""

from dataclasses import replace
from functools import partial

from devicemount_operator import reasons
from devicemount_operator.decide.decision import (
    Action,
    Decision,
    DeleteShadowPod,
    DropFinalizer,
    Event,
    EventType,
    Remove,
    RemovePolicy,
    Report,
    TargetPhase,
    TargetReport,
)
from devicemount_operator.decide.fit import is_busy
from devicemount_operator.decide.lifetime import is_expired
from devicemount_operator.decide.observation import (
    FINALIZER,
    Grant,
    GrantPhase,
    NodeName,
    Observation,
    Place,
    PodUID,
    ShadowPod,
    is_ending,
    known_container,
)
from devicemount_operator.decide.text import listing
from devicemount_operator.reasons import Reason


def deletion(observation: Observation) -> Decision | None:
    """The mount is being deleted: give everything back, then let it go."""
    meta = observation.mount.metadata
    if meta.deletion_timestamp is None:
        return None
    let_go = (DropFinalizer(),) if FINALIZER in meta.finalizers else ()
    return Decision(
        actions=(*give_back(observation), *let_go),
        events=_unmounted(observation) if let_go else (),
        setback=observation.setback,
    )


def suspension(observation: Observation) -> Decision | None:
    """The mount is suspended: give everything back and keep the object."""
    if not observation.mount.spec.suspend:
        return None
    message = reasons.message(Reason.SUSPENDED, "spec.suspend is true, the devices are given back")
    return Decision(
        actions=give_back(observation),
        report=Report(reason=Reason.SUSPENDED, message=message, target=None),
    )


def expiry(observation: Observation) -> Decision | None:
    """The mount's time is over: give everything back and keep the object."""
    if not is_expired(observation.mount, steady=observation.steady):
        return None
    after = observation.mount.spec.lifetime.expire_after
    fact = f"spec.lifetime.expireAfter ({after}) is over, the devices are given back"
    message = reasons.message(Reason.EXPIRED, fact)
    return Decision(
        actions=give_back(observation),
        report=Report(reason=Reason.EXPIRED, message=message, target=None),
    )


def departure(observation: Observation) -> Decision | None:
    """The pod is no target any more: give back what it has, and say so where it had anything."""
    if not observation.leaving:
        return None
    return Decision(
        actions=give_back(observation),
        events=_unmounted(observation),
        setback=observation.setback,
    )


def give_back(observation: Observation) -> tuple[Action, ...]:
    """Return what gives back all that this mount has anywhere; what is proved is left out."""
    held = [
        shadow.place
        for shadow in observation.ours
        if not observation.is_released(shadow) and not is_lost(observation, shadow)
    ]
    strangers = {shadow.uid for shadow in _strangers(observation)}
    held += [g.place for g in _live_grants(observation) if g.shadow_uid in strangers]
    return (
        *give_up(lost(observation)),
        *give_up_places(forgotten(observation)),
        *_remove_all(observation, held),
        *(
            DeleteShadowPod(name=shadow.name, uid=shadow.uid)
            for shadow in observation.ours
            if not shadow.deleting
        ),
    )


def give_back_some(observation: Observation, shadows: tuple[ShadowPod, ...]) -> tuple[Action, ...]:
    """Return what gives back these of several, together, as spec.unmount says."""
    return (
        *(
            replace(remove, shadow_uids=tuple(s.uid for s in shadows if s.place == remove.place))
            for remove in _remove_all(observation, [shadow.place for shadow in shadows])
        ),
        *(DeleteShadowPod(name=shadow.name, uid=shadow.uid) for shadow in shadows),
    )


def give_back_one(observation: Observation, shadow: ShadowPod) -> tuple[Action, ...]:
    """Return what gives back one of several: nothing is taken from a process before it is known
    that one has it."""
    if is_busy(observation, shadow):
        return give_back_some(observation, (shadow,))
    look = Remove(place=shadow.place, policy=RemovePolicy.WAIT, shadow_uids=(shadow.uid,))
    return look, DeleteShadowPod(name=shadow.name, uid=shadow.uid)


def give_back_former(observation: Observation, *, target_uid: PodUID) -> tuple[Action, ...]:
    """Return what gives back the shadow pods that were made for another pod than this one."""
    former = [s for s in observation.ours if s.place.target_uid != target_uid and not is_ending(s)]
    return (
        *_remove_all(observation, [s.place for s in former if not observation.is_released(s)]),
        *(DeleteShadowPod(name=shadow.name, uid=shadow.uid) for shadow in former),
    )


def give_up(reservations: tuple[tuple[Place, PodUID], ...]) -> tuple[Action, ...]:
    """Return what revokes reservations that are gone or going: `whenBusy` is over for them."""
    return tuple(
        Remove(
            place=place,
            policy=RemovePolicy.LOST,
            shadow_uids=tuple(uid for where, uid in reservations if where == place),
        )
        for place in _distinct([place for place, _ in reservations])
    )


def give_up_places(places: tuple[Place, ...]) -> tuple[Action, ...]:
    """Return what revokes whatever a mount still has in places where it has no shadow pod."""
    return tuple(Remove(place=place, policy=RemovePolicy.LOST, shadow_uids=()) for place in places)


def lost(observation: Observation) -> tuple[tuple[Place, PodUID], ...]:
    """Return the shadow pods that hold nothing for us any more and of which that is not proved at
    the agent.

    They are deleted by others, failed, or gone; or the agent says that their device is another's.
    """
    alive = {shadow.uid for shadow in (*observation.ours, *_strangers(observation))}
    return (
        *((s.place, s.uid) for s in observation.ours if is_lost(observation, s)),
        *((g.place, g.shadow_uid) for g in _live_grants(observation) if g.shadow_uid not in alive),
    )


def is_lost(observation: Observation, shadow: ShadowPod) -> bool:
    """Say whether a shadow pod that exists has lost its device, unproved."""
    grant = observation.grant_of(shadow)
    gone = is_ending(shadow) or (grant is not None and grant.phase is GrantPhase.LOST)
    return gone and not observation.is_released(shadow)


def forgotten(observation: Observation) -> tuple[Place, ...]:
    """Return the places that only status remembers: a pod went by force while we were down."""
    known = {s.place for s in observation.ours} | {g.place for g in observation.agent.grants}
    written = [
        Place(node=NodeName(row.node_name), target_uid=PodUID(row.pod_uid))
        for row in observation.mount.status.targets
        if row.shadow_pods and row.node_name
    ]
    return _distinct([place for place in written if place not in known])


def unproved(observation: Observation) -> tuple[TargetReport, ...]:
    """Describe the places that status must go on remembering: nothing is proved there yet."""
    names = {s.uid: s.name for s in observation.ours}
    names.update({g.shadow_uid: g.shadow_name for g in observation.agent.grants})
    found: dict[Place, tuple[str, ...]] = {place: (names[uid],) for place, uid in lost(observation)}
    rows = {
        (row.node_name, row.pod_uid): row.shadow_pods for row in observation.mount.status.targets
    }
    found.update({p: rows[p.node, p.target_uid] for p in forgotten(observation)})
    return tuple(
        TargetReport(
            pod_uid=place.target_uid,
            node=place.node,
            container=known_container(observation, place.target_uid),
            container_id=None,
            phase=TargetPhase.RELEASING,
            shadow_pods=shadow_pods,
        )
        for place, shadow_pods in found.items()
    )


def _live_grants(observation: Observation) -> tuple[Grant, ...]:
    return tuple(
        grant
        for grant in observation.agent.grants
        if grant.phase is not GrantPhase.REMOVED
        and grant.shadow_uid not in observation.agent.released
    )


def _strangers(observation: Observation) -> tuple[ShadowPod, ...]:
    """Return the pods that are not ours (any more: garbage collection or an edit took a mark off)
    and still reserve: what is granted for such a one is not lost."""
    return tuple(s for s in observation.shadows if not s.is_ours and not is_ending(s))


def _remove_all(observation: Observation, places: list[Place]) -> tuple[Remove, ...]:
    """Return what takes all back in these places, as spec.unmount says now."""
    unmount = observation.mount.spec.unmount
    if unmount.when_busy == "Wait":
        remove = partial(Remove, policy=RemovePolicy.WAIT)
    else:
        remove = partial(
            Remove,
            policy=RemovePolicy.TERMINATE,
            grace_s=unmount.grace_period_seconds,
            include_main=unmount.include_main_process,
        )
    return tuple(remove(place=place, shadow_uids=()) for place in _distinct(places))


def _distinct(found: list[Place]) -> tuple[Place, ...]:
    return tuple(dict.fromkeys(found))


def _unmounted(observation: Observation) -> tuple[Event, ...]:
    """Tell of it only if something was mounted: else the mount just ends."""
    ids = [
        f"{device.resource} {device.id}"
        for row in observation.mount.status.targets
        for device in row.devices
    ]
    if not ids:
        return ()
    text = f"took {listing(ids)} from pod {observation.pod_name or 'that is gone'}"
    return (Event(EventType.NORMAL, "Unmounted", text),)
