# SPDX-License-Identifier: Apache-2.0
"""What an edit of what is mounted leads to: what goes, in which order and how, what is reserved for
the rest, and that what is in use and wanted is left alone."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from devicemount_operator.api import v1alpha1 as api
from devicemount_operator.decide import chain, report
from devicemount_operator.decide.decision import (
    Action,
    CreateShadowPod,
    DeleteShadowPod,
    Remove,
    RemovePolicy,
    StartApply,
)
from devicemount_operator.decide.fit import fit
from devicemount_operator.decide.needs import needs_facts, needs_target
from devicemount_operator.decide.observation import (
    Grant,
    GrantPhase,
    Observation,
    Place,
    PodUID,
    Setback,
    ShadowPod,
)
from devicemount_operator.reasons import Reason
from unit.operator import given
from unit.operator.given import NODE, NOW, PLACE, RESOURCE

OTHER = "testbed.devicemount.io/tun"
FORMER = Place(node=NODE, target_uid=PodUID("55555555-0000-4000-8000-000000000000"))
TERMINATE = {"whenBusy": "Terminate", "gracePeriodSeconds": 5, "includeMainProcess": True}
ENDING = {"policy": RemovePolicy.TERMINATE, "grace_s": 5, "include_main": True}


def uid(n: int) -> PodUID:
    return PodUID(f"shadow-{n}")


def name(n: int) -> str:
    return f"dm-11111111-22222222-{n}"


def pod(n: int, count: int = 1, **changes: Any) -> ShadowPod:
    """The n-th shadow pod, each a second younger than the one before."""
    fields = {"uid": uid(n), "name": name(n), "resources": {RESOURCE: count}, "seen": NOW - 99 + n}
    return given.shadow(**{**fields, **changes})


def grant(n: int, phase: GrantPhase = GrantPhase.GRANTED, **changes: Any) -> Grant:
    fields = {
        "shadow_uid": uid(n),
        "shadow_name": name(n),
        "devices": (given.device(f"vcs{n}"),),
        "container": "notebook",
    }
    return given.grant(phase, **{**fields, **changes})


def wants(count: int = 1, **changes: Any) -> Any:
    return given.mount(**{"limits": {RESOURCE: count}, **changes})


def scene(
    mount: Any, *shadows: ShadowPod, grants: tuple[Grant, ...], **changes: Any
) -> Observation:
    """What stands, with the target read."""
    of_agent = {"container": "notebook", "asked_for": mount.spec.target, "grants": grants}
    agent = given.agent(**{**of_agent, **changes.pop("agent", {})})
    return given.observation(**{"mount": mount, "shadows": shadows, "agent": agent, **changes})


def apply(*numbers: int, **changes: Any) -> StartApply:
    uids = tuple(map(uid, numbers))
    fields = {"container": "notebook", "container_id": given.CONTAINER_ID, "shadow_uids": uids}
    return StartApply(place=PLACE, **{**fields, **changes})  # type: ignore[arg-type]


def look(*numbers: int, **changes: Any) -> Remove:
    fields = {"place": PLACE, "policy": RemovePolicy.WAIT}
    uids = tuple(map(uid, numbers))
    return Remove(shadow_uids=uids, **{**fields, **changes})  # type: ignore[arg-type]


def delete(n: int) -> DeleteShadowPod:
    return DeleteShadowPod(name=name(n), uid=uid(n))


def failed(reason: Reason, **changes: Any) -> Setback:
    fields = {"message": "m", "count": 1, "generation": 1, "at": NOW - 1, "until": NOW + 9}
    return Setback(reason=reason, **{**fields, **changes})


@dataclass(frozen=True)
class Case:
    observation: Observation
    actions: tuple[Action, ...] = ()
    reason: Reason | None = None
    message: str | None = None
    again_s: float | None = None
    failures: int = 0


def case(sentence: str, observation: Observation, *actions: Action, **expected: Any) -> Any:
    return pytest.param(Case(observation, actions, **expected), id=sentence)


BUSY = {"holders": (given.holder(),), "holders_total": 1}
REVOKED = {**BUSY, "granted_wall": None}
UNPLACED = {"scheduled": False, "seen": NOW - 0.5}

GROWS = [
    case(
        "more are wanted: one more shadow pod for all that is missing, and the agent hears of both",
        scene(wants(3), pod(0), grants=(grant(0),)),
        CreateShadowPod(1, {RESOURCE: 2}),
        apply(0),
        again_s=2.0,
    ),
    case(
        "another resource is wanted as well: the same",
        scene(given.mount(limits={RESOURCE: 1, OTHER: 2}), pod(0), grants=(grant(0),)),
        CreateShadowPod(1, {OTHER: 2}),
        apply(0),
        again_s=2.0,
    ),
    case(
        "more are wanted while the first is being granted: it is not touched",
        scene(
            wants(3),
            pod(0),
            grants=(grant(0, GrantPhase.WAITING, granted_wall=None),),
            agent={"applying": frozenset({uid(0)})},
        ),
        CreateShadowPod(1, {RESOURCE: 2}),
        apply(0),
        again_s=2.0,
    ),
    case(
        "more are wanted while no scheduler has placed the first: one asks for all or for nothing",
        scene(wants(3), pod(0, **UNPLACED), grants=()),
        look(0),
        delete(0),
        reason=Reason.RESERVING,
        again_s=0.0,
    ),
    case(
        "more are wanted while no scheduler has placed the second: the first is not touched",
        scene(wants(4), pod(0), pod(1, **UNPLACED), grants=(grant(0),)),
        look(1),
        delete(1),
        again_s=0.0,
    ),
    case(
        "the second is on its way: asked for with the first, and nothing is said yet",
        scene(wants(3), pod(0), pod(1, 2, seen=NOW - 1), grants=(grant(0),)),
        apply(0, 1),
        again_s=1.0,
    ),
    case(
        "the agent is at work on both",
        scene(
            wants(3),
            pod(0),
            pod(1, 2, seen=NOW - 1),
            grants=(grant(0),),
            agent={"applying": frozenset({uid(0), uid(1)})},
        ),
        again_s=1.0,
    ),
    case(
        "the agent was asked before the second was made: asked again",
        scene(
            wants(3),
            pod(0),
            pod(1, 2, seen=NOW - 1),
            grants=(),
            agent={"applying": frozenset({uid(0)})},
        ),
        apply(0, 1),
        again_s=1.0,
    ),
    case(
        "no node has room for the second: the first goes on, and it is said what is waited for",
        scene(
            wants(3),
            pod(0),
            pod(1, 2, **UNPLACED, scheduler_text=f"0/1: 1 Insufficient {RESOURCE}"),
            grants=(grant(0),),
        ),
        reason=Reason.INSUFFICIENT,
        message=f"node node1 has too few free: 2 {RESOURCE} asked for (0/1: 1 Insufficient "
        f"{RESOURCE}). It mounts as soon as the node has enough free ones.",
        again_s=10.0,
    ),
    case(
        "a quota refused the second: held back, and the first goes on",
        scene(wants(3), pod(0), grants=(grant(0),), setback=failed(Reason.QUOTA_EXCEEDED)),
        reason=Reason.QUOTA_EXCEEDED,
        message="m",
        again_s=9.0,
        failures=1,
    ),
    case(
        "held back, and the object was edited: tried at once",
        scene(
            wants(3, metadata={"generation": 2}),
            pod(0),
            grants=(grant(0),),
            setback=failed(Reason.QUOTA_EXCEEDED),
        ),
        CreateShadowPod(1, {RESOURCE: 2}),
        apply(0),
        again_s=2.0,
        failures=1,
    ),
    case(
        "both open",
        scene(wants(3), pod(0), pod(1, 2), grants=(grant(0), grant(1))),
        reason=Reason.MOUNTED,
        message=f"{RESOURCE} vcs0, {RESOURCE} vcs1 open in container notebook.",
    ),
    case(
        "what was lost is not wanted any more: the agent hears that all that stands is all",
        scene(
            wants(1),
            pod(0),
            grants=(grant(0, incomplete=True),),
            agent={"asked": frozenset({uid(0), uid(1)}), "asked_at": NOW - 1},
        ),
        apply(0),
        reason=Reason.MOUNTED,
        again_s=15.0,
    ),
    case(
        "it hears it right now",
        scene(
            wants(1),
            pod(0),
            grants=(grant(0, incomplete=True),),
            agent={"asked": frozenset({uid(0)}), "applying": frozenset({uid(0)})},
        ),
        reason=Reason.MOUNTED,
        again_s=15.0,
    ),
    case(
        "it has just heard so: not told again",
        scene(
            wants(1),
            pod(0),
            grants=(grant(0, incomplete=True),),
            agent={"asked": frozenset({uid(0)}), "asked_at": NOW - 14},
        ),
        reason=Reason.MOUNTED,
        again_s=15.0,
    ),
    case(
        "it heard so some time ago, and was restarted since: told again",
        scene(
            wants(1),
            pod(0),
            grants=(grant(0, incomplete=True),),
            agent={"asked": frozenset({uid(0)}), "asked_at": NOW - 15},
        ),
        apply(0),
        reason=Reason.MOUNTED,
        again_s=15.0,
    ),
    case(
        "the kubelet gave the second too few: it alone is given up",
        scene(
            wants(3),
            pod(0),
            pod(1, 2),
            grants=(grant(0),),
            agent={"refusal": given.refusal(Reason.INSUFFICIENT, "2 asked for, 1 given")},
        ),
        look(1, policy=RemovePolicy.LOST),
        delete(1),
        reason=Reason.INSUFFICIENT,
        again_s=2.0,
        failures=1,
    ),
    case(
        "the second cannot be put into the container: it alone is given back",
        scene(
            wants(3),
            pod(0),
            pod(1, 2),
            grants=(grant(0),),
            agent={"refusal": given.refusal(Reason.PATH_CONFLICT, "/dev/vcs1 is another's")},
        ),
        look(1),
        delete(1),
        reason=Reason.PATH_CONFLICT,
        again_s=10.0,
        failures=1,
    ),
    case(
        "the second failed while the container of the first starts again: the first has not failed",
        scene(
            wants(3),
            pod(0),
            pod(1, 2),
            grants=(grant(0, GrantPhase.TARGET_ENDED, granted_wall=None),),
            agent={"refusal": given.refusal(Reason.RESERVATION_LOST, "gone")},
        ),
        look(1, policy=RemovePolicy.LOST),
        delete(1),
        reason=Reason.RESERVATION_LOST,
        again_s=2.0,
        failures=1,
    ),
    case(
        "the hold of the second does not run: it alone is given up",
        scene(wants(3), pod(0), pod(1, 2, hold_down_since=NOW - 30), grants=(grant(0), grant(1))),
        look(1, policy=RemovePolicy.LOST),
        delete(1),
        reason=Reason.SHADOW_NOT_RUNNING,
        again_s=2.0,
        failures=1,
    ),
    case(
        "the second is lost: it alone is revoked",
        scene(wants(3), pod(0), pod(1, 2, deleting=True), grants=(grant(0), grant(1))),
        look(1, policy=RemovePolicy.LOST),
        reason=Reason.RESERVATION_LOST,
        message=f"shadow pod {name(1)} was deleted or evicted. A new reservation is made.",
        again_s=2.0,
        failures=1,
    ),
    case(
        "a driver for dynamic allocation served the second: it alone is given back",
        scene(wants(3), pod(0), pod(1, 2, claim="c"), grants=(grant(0),)),
        look(1),
        delete(1),
        reason=Reason.ALLOCATED_BY_DRA,
        again_s=10.0,
        failures=1,
    ),
    case(
        "the container starts again: all that stands is asked for",
        scene(
            wants(3),
            pod(0),
            pod(1, 2),
            grants=(
                grant(0, GrantPhase.TARGET_ENDED, granted_wall=None),
                grant(1, GrantPhase.TARGET_ENDED, granted_wall=None),
            ),
        ),
        apply(0, 1),
        reason=Reason.GRAFTING,
    ),
]

SHRINKS = [
    case(
        "fewer are wanted: the youngest whole shadow pod is looked at and goes, nothing is said",
        scene(wants(2), pod(0), pod(1), pod(2), grants=(grant(0), grant(1), grant(2))),
        look(2),
        delete(2),
        again_s=0.0,
    ),
    case(
        "fewer by several: those that add up to it",
        scene(wants(1), pod(0), pod(1, 2), grants=(grant(0), grant(1))),
        look(1),
        delete(1),
        again_s=0.0,
    ),
    case(
        "the youngest is too big: an older one that fits goes",
        scene(wants(2), pod(0), pod(1, 2), grants=(grant(0), grant(1))),
        look(0),
        delete(0),
        again_s=0.0,
    ),
    case(
        "the youngest is known to be in use: another goes",
        scene(
            wants(2),
            pod(0),
            pod(1),
            pod(2),
            grants=(grant(0), grant(1), grant(2, GrantPhase.BUSY, **BUSY)),
        ),
        look(1),
        delete(1),
        again_s=0.0,
    ),
    case(
        "all are in use: the youngest is asked for again",
        scene(
            wants(1),
            pod(0),
            pod(1),
            grants=(grant(0, GrantPhase.BUSY, **BUSY), grant(1, GrantPhase.BUSY, **BUSY)),
        ),
        look(1),
        delete(1),
        again_s=0.0,
    ),
    case(
        "all are in use and processes may be ended: those of the youngest",
        scene(
            wants(1, unmount=TERMINATE),
            pod(0),
            pod(1),
            grants=(grant(0, GrantPhase.BUSY, **BUSY), grant(1, GrantPhase.BUSY, **BUSY)),
        ),
        look(1, **ENDING),
        delete(1),
        again_s=0.0,
    ),
    case(
        "processes may be ended, but nobody knows yet whether any has it: looked at first",
        scene(wants(1, unmount=TERMINATE), pod(0), pod(1), grants=(grant(0), grant(1))),
        look(1),
        delete(1),
        again_s=0.0,
    ),
    case(
        "whose holders are being ended goes, though another is idle by now",
        scene(
            wants(1, unmount=TERMINATE),
            pod(0),
            pod(1),
            grants=(grant(0, GrantPhase.BUSY, **REVOKED), grant(1)),
        ),
        look(0, **ENDING),
        delete(0),
        again_s=0.0,
    ),
    case(
        "the count is set back while a holder is waited for: mounted as before",
        scene(wants(2), pod(0), pod(1), grants=(grant(0), grant(1, GrantPhase.BUSY, **BUSY))),
        reason=Reason.MOUNTED,
    ),
    case(
        "the count is set back while holders are being ended: granted again",
        scene(
            wants(2, unmount=TERMINATE),
            pod(0),
            pod(1),
            grants=(grant(0), grant(1, GrantPhase.BUSY, **REVOKED)),
        ),
        apply(0, 1),
        reason=Reason.GRAFTING,
    ),
    case(
        "what is not placed goes before what is granted",
        scene(wants(1), pod(0), pod(1, 2, **UNPLACED), grants=(grant(0),)),
        look(1),
        delete(1),
        again_s=0.0,
    ),
    case(
        "what is placed and not granted goes before what is granted",
        scene(wants(1), pod(0), pod(1, 2), grants=(grant(0),)),
        look(1),
        delete(1),
        again_s=0.0,
    ),
    case(
        "nothing is granted yet and fewer are wanted: made anew",
        scene(wants(2), pod(0, 3), grants=()),
        look(0),
        delete(0),
        reason=Reason.RESERVING,
        message="spec.resources wants something else, and what was reserved is given back. It goes "
        "on by itself.",
        again_s=0.0,
    ),
    case(
        "no whole shadow pod is the difference: said, and nothing is changed",
        scene(wants(2), pod(0, 3), grants=(grant(0),)),
        reason=Reason.SHRINK_NOT_POSSIBLE,
        message=f"2 {RESOURCE} are wanted, and whole shadow pods hold: {name(0)} (3 {RESOURCE}). "
        "Set spec.resources to what whole shadow pods make up; one DeviceMount per device gives "
        "devices back one by one.",
    ),
    case(
        "the same while hold does not run yet: looked at again when it must",
        scene(wants(2), pod(0, 3, hold_down_since=NOW - 5), grants=(grant(0),)),
        reason=Reason.SHRINK_NOT_POSSIBLE,
        again_s=20.0,
    ),
    case(
        "the same while something waits to be reserved: that is not wanted any more",
        scene(wants(2), pod(0, 3), pod(1, 2, **UNPLACED), grants=(grant(0),)),
        look(1),
        delete(1),
        again_s=0.0,
    ),
    case(
        "the same while the container starts again: granted to it, since it is not given back",
        scene(wants(2), pod(0, 3), grants=(grant(0, GrantPhase.TARGET_ENDED, granted_wall=None),)),
        apply(0),
        reason=Reason.GRAFTING,
    ),
    case(
        "a resource is not wanted any more, but its shadow pod holds another that is",
        scene(
            given.mount(limits={RESOURCE: 1}),
            pod(0, resources={RESOURCE: 1, OTHER: 1}),
            grants=(grant(0),),
        ),
        reason=Reason.SHRINK_NOT_POSSIBLE,
        message=f"0 {OTHER} are wanted, and whole shadow pods hold: {name(0)} (1 {OTHER}, 1 "
        f"{RESOURCE}). Set spec.resources to what whole shadow pods make up; one DeviceMount per "
        "device gives devices back one by one.",
    ),
]

REPLACES = [
    case(
        "another resource: what is held is given back first",
        scene(given.mount(limits={OTHER: 1}), pod(0), grants=(grant(0),)),
        look(0),
        delete(0),
        reason=Reason.RESERVING,
        again_s=0.0,
    ),
    case(
        "another resource, and the former is given back: reserved",
        scene(
            given.mount(limits={OTHER: 1}),
            pod(0),
            grants=(grant(0, GrantPhase.REMOVED),),
        ),
        delete(0),
        reason=Reason.RESERVING,
        again_s=0.0,
    ),
    case(
        "one resource instead of another, a third stays",
        scene(
            given.mount(limits={RESOURCE: 1, "x.io/new": 2}),
            pod(0),
            pod(1, resources={OTHER: 1}),
            grants=(grant(0), grant(1)),
        ),
        look(1),
        delete(1),
        again_s=0.0,
    ),
    case(
        "another container: what the former has is given back, as spec.unmount says",
        scene(
            wants(1, container="proxy", unmount=TERMINATE),
            pod(0),
            grants=(grant(0),),
            target=given.target(containers=(given.container(), given.container("proxy"))),
        ),
        look(0, **ENDING),
        delete(0),
        reason=Reason.RESERVING,
        message="spec.target names another container, and the former one's devices are given back. "
        "It goes on by itself.",
        again_s=0.0,
    ),
    case(
        "no container is named any more, and the default is another",
        scene(
            wants(1),
            pod(0),
            grants=(grant(0),),
            target=given.target(
                containers=(given.container(), given.container("proxy")), default_container="proxy"
            ),
        ),
        look(0),
        delete(0),
        reason=Reason.RESERVING,
        again_s=0.0,
    ),
    case(
        "a container that does not exist is named: the devices stay where they are",
        scene(wants(1, container="notebok"), pod(0), grants=(grant(0),)),
        reason=Reason.CONTAINER_NOT_FOUND,
        again_s=15.0,
    ),
    case(
        "a former target's devices are given back before anything else is looked at",
        scene(
            wants(3),
            pod(0, place=FORMER),
            pod(1, 3),
            grants=(grant(0, place=FORMER), grant(1)),
        ),
        look(place=FORMER),
        delete(0),
        reason=Reason.RESERVING,
        again_s=0.0,
    ),
]


@pytest.mark.parametrize("case", [*GROWS, *SHRINKS, *REPLACES])
def test_an_edit_leads_to(case: Case) -> None:
    decision = chain.decide(case.observation)
    assert decision.actions == case.actions
    said = decision.report
    assert (said.reason if said else None) is case.reason
    if case.message is not None:
        assert said is not None
        assert said.message == case.message
    assert decision.requeue_after_s == (
        None if case.again_s is None else pytest.approx(case.again_s)
    )
    assert (decision.setback.count if decision.setback else 0) == case.failures


def conditions(observation: Observation) -> tuple[dict[str, str], Any]:
    said = chain.decide(observation).report
    assert said is not None
    status = report.render(observation, said).status
    assert status is not None
    return {c["type"]: c["status"] for c in status["conditions"]}, status["targets"][0]


def test_while_it_cannot_grow_the_row_says_what_opens_and_ready_is_false() -> None:
    waiting = pod(1, 2, **UNPLACED, scheduler_text=f"Insufficient {RESOURCE}")
    found, row = conditions(scene(wants(3), pod(0), waiting, grants=(grant(0),)))
    assert {kind: found[kind] for kind in ("Ready", "Reconciling", "Reserved", "Grafted")} == {
        "Ready": "False",
        "Reconciling": "True",
        "Reserved": "False",
        "Grafted": "False",
    }
    assert [device["id"] for device in row["devices"]] == ["vcs0"]
    assert row["shadowPods"] == [name(0), name(1)]
    assert row["phase"] == "Waiting"


def test_a_count_that_cannot_be_had_is_stalled_and_all_stays_granted() -> None:
    found, row = conditions(scene(wants(2), pod(0, 3), grants=(grant(0),)))
    assert found == {
        "Ready": "False",
        "Stalled": "True",
        "TargetFound": "True",
        "Reserved": "True",
        "Grafted": "True",
    }
    assert row["phase"] == "Mounted"


def test_what_grew_is_since_its_first_grant_with_its_timings() -> None:
    grants = (grant(0, granted_wall=given.WALL - 60), grant(1, granted_wall=given.WALL - 1))
    _, row = conditions(scene(wants(3), pod(0), pod(1, 2), grants=grants))
    assert row["since"].endswith("22:12:20Z")
    assert {device["id"] for device in row["devices"]} == {"vcs0", "vcs1"}


def told(before: Observation, after: Observation) -> list[tuple[str, str]]:
    """Return the Events of the second, whose status is what the first has left."""
    said = chain.decide(before).report
    assert said is not None
    written = report.render(before, said).status
    assert written is not None
    status = api.Status.model_validate({k: v for k, v in written.items() if v is not None})
    after = replace(after, mount=after.mount.model_copy(update={"status": status}))
    said = chain.decide(after).report
    assert said is not None
    return [(event.reason, event.message) for event in report.render(after, said).events]


def test_what_an_edit_brought_and_took_is_told_once() -> None:
    small = scene(wants(1), pod(0), grants=(grant(0),))
    large = scene(wants(2), pod(0), pod(1), grants=(grant(0), grant(1)))
    assert told(small, large) == [
        ("DevicesAdded", f"pod notebook-0 has {RESOURCE} vcs1 as well"),
    ]
    assert told(large, small) == [
        ("DevicesRemoved", f"took {RESOURCE} vcs1 from pod notebook-0"),
    ]
    assert told(large, large) == []


def test_one_of_several_that_is_in_use_makes_way_for_another_silently() -> None:
    grants = (grant(0), grant(1, GrantPhase.BUSY, **BUSY))
    observation = scene(wants(1), pod(0), pod(1), grants=grants, target=None)
    busy = given.refusal(Reason.DEVICE_BUSY, "", **BUSY)
    decision = chain.refused(observation, busy)
    assert (decision.report, decision.requeue_after_s) == (None, 0.1)


def test_when_all_are_in_use_the_holders_are_named_and_all_stays() -> None:
    grants = (grant(0, GrantPhase.BUSY, **BUSY), grant(1, GrantPhase.BUSY, **BUSY))
    observation = scene(wants(1), pod(0), pod(1), grants=grants, target=None)
    decision = chain.refused(observation, given.refusal(Reason.DEVICE_BUSY, "", **BUSY))
    assert decision.report is not None
    assert decision.report.reason is Reason.DEVICE_BUSY
    assert decision.report.message.startswith("1 process has a device open: 17 python train.py")
    target = decision.report.target
    assert target is not None
    assert [device.id for device in target.devices] == ["vcs0", "vcs1"]


def test_a_quota_that_refuses_the_second_is_told_while_the_first_opens() -> None:
    observation = scene(wants(3), pod(0), grants=(grant(0),))
    decision = chain.refused(observation, given.refusal(Reason.QUOTA_EXCEEDED, "exceeded quota"))
    assert decision.report is not None
    assert decision.report.reason is Reason.QUOTA_EXCEEDED
    assert decision.report.target is not None
    assert decision.report.target.shadow_pods == (name(0),)


def written(generation: int, **changes: Any) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True", "reason": "Mounted"}
    row = {"podUID": PLACE.target_uid, "containerName": "notebook", "shadowPods": [name(0)]}
    return {"observedGeneration": generation, "conditions": [ready], "targets": [row], **changes}


@pytest.mark.parametrize(
    ("observation", "reads"),
    [
        (scene(wants(1), pod(0), grants=(grant(0),), target=None), False),
        (
            scene(
                wants(1, status=written(1)),
                pod(0),
                grants=(grant(0),),
                target=None,
                agent={"asked_for": None},
            ),
            False,
        ),
        (
            scene(
                wants(1, status=written(0)),
                pod(0),
                grants=(grant(0),),
                target=None,
                agent={"asked_for": None},
            ),
            True,
        ),
        (
            scene(
                wants(1, container="proxy", status=written(0)),
                pod(0),
                grants=(grant(0),),
                target=None,
                agent={"asked_for": given.mount().spec.target},
            ),
            True,
        ),
        (scene(wants(3), pod(0), grants=(grant(0),), target=None), True),
        (
            scene(
                wants(3),
                pod(0),
                grants=(grant(0),),
                target=None,
                setback=failed(Reason.INSUFFICIENT),
            ),
            False,
        ),
        (scene(wants(2), pod(0, 3), grants=(grant(0),), target=None), False),
    ],
    ids=[
        "not while it is mounted as it was asked for",
        "not by a restarted operator, where status says Ready of this generation",
        "by a restarted operator, where it was edited since",
        "when spec.target was edited",
        "when more are wanted",
        "not while that is held back",
        "not while a count cannot be had",
    ],
)
def test_the_target_is_read(observation: Observation, *, reads: bool) -> None:
    assert needs_target(observation) is reads


def test_what_is_to_grow_is_held_against_the_profiles_again() -> None:
    assert needs_facts(scene(wants(3), pod(0), grants=(grant(0),))) == NODE
    assert needs_facts(scene(wants(1), pod(0), grants=(grant(0),))) is None


def test_odd_shadow_pods_are_added_up_within_bounds() -> None:
    odd = [pod(n, 2**n) for n in range(20)]
    found = fit(scene(wants(1), *odd, grants=tuple(grant(n) for n in range(20))))
    assert found.problem or sum(s.resources[RESOURCE] for s in found.surplus) == 2**20 - 2


def test_an_operator_that_has_just_seen_all_of_them_gives_back_the_youngest() -> None:
    made = ["2026-11-26T07:00:09Z", "2026-11-26T07:00:05Z", "2026-11-26T07:00:07Z"]
    pods = [pod(n, created=at, seen=NOW) for n, at in enumerate(made)]
    scenery = scene(wants(1), *pods, grants=tuple(grant(n) for n in range(3)))
    assert [shadow.name for shadow in fit(scenery).surplus] == [name(0), name(2)]
