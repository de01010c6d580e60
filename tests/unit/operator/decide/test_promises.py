# SPDX-License-Identifier: Apache-2.0
"""What holds for every Observation, however absurd: nothing is given away unproved."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from devicemount_operator.api import v1alpha1 as api
from devicemount_operator.decide import chain, happened, report
from devicemount_operator.decide.decision import (
    Action,
    CreateShadowPod,
    Decision,
    DeleteShadowPod,
    DropFinalizer,
    Remove,
    RemovePolicy,
    StartApply,
)
from devicemount_operator.decide.observation import (
    ContainerState,
    GrantPhase,
    Milestones,
    NodeName,
    Observation,
    Place,
    PodPhase,
    PodUID,
    Refusal,
    Setback,
    ShadowPod,
    TargetAbsent,
    holds,
    is_granted,
    is_unwanted,
)
from devicemount_operator.reasons import Reason, trouble
from unit.operator import given

NODES = st.sampled_from([NodeName("node1"), NodeName("node2")])
TARGETS = st.sampled_from([given.TARGET_UID, PodUID("66666666-0000-4000-8000-000000000000")])
UIDS = st.sampled_from([PodUID(f"{n}" * 8 + "-0000-4000-8000-000000000000") for n in (3, 4, 5)])
TIMES = st.sampled_from([given.NOW - 900, given.NOW - 30, given.NOW - 1, given.NOW, given.NOW + 9])
TEXTS = st.sampled_from(["", "0/2 nodes: 1 Insufficient testbed.devicemount.io/vcs", "\ud800\x00"])
RESOURCES = st.sampled_from([given.RESOURCE, "testbed.devicemount.io/tun"])
COUNTS = st.integers(1, 3)
PLACES = st.builds(Place, node=NODES, target_uid=TARGETS)

CONTAINERS = st.builds(
    given.container,
    st.sampled_from(["notebook", "proxy"]),
    state=st.sampled_from(ContainerState),
    detail=TEXTS,
)
PODS = st.builds(
    given.target,
    uid=TARGETS,
    node=st.none() | NODES,
    phase=st.sampled_from(PodPhase),
    deleting=st.booleans(),
    containers=st.lists(CONTAINERS, min_size=1, max_size=2).map(tuple),
    default_container=st.sampled_from([None, "proxy"]),
)
SHADOWS = st.builds(
    given.shadow,
    uid=UIDS,
    place=PLACES,
    is_ours=st.booleans(),
    resources=st.dictionaries(RESOURCES, COUNTS, min_size=1),
    phase=st.sampled_from(PodPhase),
    deleting=st.booleans(),
    failure=st.sampled_from(["", "Evicted", "UnexpectedAdmissionError"]),
    scheduled=st.booleans(),
    scheduler_text=TEXTS,
    gates=st.sampled_from([(), ("q/x",)]),
    claim=st.sampled_from(["", "claim-x"]),
    hold_down_since=st.none() | TIMES,
    seen=TIMES,
)
GRANTS = st.builds(
    given.grant,
    st.sampled_from(GrantPhase),
    shadow_uid=UIDS,
    place=PLACES,
    devices=st.sampled_from([(), (given.device(),)]),
    granted_wall=st.sampled_from([None, given.WALL]),
    concerns=st.sampled_from([(), (given.concern("FilterBlocked"), given.concern("NotIsolated"))]),
    repairs=st.integers(0, 2),
    restarts=st.integers(0, 2),
    lost=st.sampled_from([None, given.concern("ShadowNotRunning", "\ud800")]),
)
TROUBLES = st.sampled_from([reason for reason in Reason if trouble(reason.value)])
REFUSALS: st.SearchStrategy[Refusal] = st.builds(
    given.refusal,
    TROUBLES,
    TEXTS,
    at=TIMES,
    holders=st.sampled_from([(), (given.holder(),)]),
    holders_total=st.integers(0, 99),
    is_revoked=st.booleans(),
)
AGENTS = st.builds(
    given.agent,
    nodes=st.frozensets(NODES),
    grants=st.lists(GRANTS, max_size=3, unique_by=lambda g: g.shadow_uid).map(tuple),
    released=st.frozensets(UIDS),
    applying=st.frozensets(UIDS),
    container=st.sampled_from([None, "notebook"]),
    refusal=st.none() | REFUSALS,
    ended=st.dictionaries(UIDS, TIMES, max_size=2),
)
SETBACKS = st.builds(
    Setback,
    reason=TROUBLES,
    message=TEXTS,
    count=st.integers(1, 10**6),
    generation=st.integers(0, 1),
    at=TIMES,
    until=TIMES,
)


FACTS = st.builds(
    given.facts,
    serialised=st.booleans(),
    env_only=st.sampled_from(["", "memory limit"]),
    refused=st.sampled_from(["", "MPS"]),
    driver_missing=TEXTS,
)
TURNS = st.builds(given.turn, TEXTS, since=TIMES, is_awaited=st.booleans())


def _mount(deleted: str | None, finalizers: list[str], row: dict[str, Any], **spec: Any) -> Any:
    meta = {"finalizers": finalizers} | ({"deletionTimestamp": deleted} if deleted else {})
    return given.mount(metadata=meta, status={"targets": [row]}, **spec)


MOUNTS = st.builds(
    _mount,
    st.sampled_from([None, "2026-11-26T07:00:00Z"]),
    st.sampled_from([[], ["x"], ["devicemount.io/finalizer"]]),
    st.fixed_dictionaries(
        {
            "podUID": TARGETS,
            "nodeName": NODES,
            "shadowPods": st.sampled_from([[], [given.SHADOW_NAME]]),
        }
    ),
    suspend=st.booleans(),
    unmount=st.sampled_from([{}, {"whenBusy": "Terminate", "gracePeriodSeconds": 0}]),
    container=st.sampled_from([None, "notebook", "absent"]),
    limits=st.dictionaries(RESOURCES, COUNTS, min_size=1),
)


def _consistent(observation: Observation) -> Observation:
    """Let agents speak of a shadow pod only where it is."""
    places = {shadow.uid: shadow.place for shadow in observation.shadows}
    grants = tuple(
        replace(grant, place=places.get(grant.shadow_uid, grant.place))
        for grant in observation.agent.grants
    )
    return replace(observation, agent=replace(observation.agent, grants=grants))


OBSERVATIONS = st.builds(
    given.observation,
    mount=MOUNTS,
    leaving=st.sampled_from(["", "", "its labels do not match"]),
    after=st.sampled_from([(), (), ("another",)]),
    target=st.none() | st.just(TargetAbsent()) | PODS,
    shadows=st.lists(SHADOWS, max_size=3, unique_by=lambda s: s.uid).map(tuple),
    node=st.sampled_from([None, given.node(), given.node(enabled=False)]),
    facts=st.none() | FACTS.map(lambda fact: (fact,)),
    turn=st.none() | TURNS,
    agent=AGENTS,
    setback=st.none() | SETBACKS,
    milestones=st.builds(Milestones, seen=st.none() | TIMES, applied=st.none() | TIMES),
).map(_consistent)


NUMBERS = st.lists(
    st.tuples(st.dictionaries(RESOURCES, COUNTS, min_size=1), st.sampled_from(GrantPhase)),
    max_size=4,
)


def _edited(standing: Any, limits: dict[str, int], **spec: Any) -> Observation:
    """Shadow pods that hold, or do not yet, what was wanted once; and what is wanted now."""
    shadows = tuple(
        given.shadow(uid=PodUID(f"uid-{n}"), name=f"dm-11111111-22222222-{n}", resources=counts)
        for n, (counts, _) in enumerate(standing)
    )
    grants = tuple(
        given.grant(phase, shadow_uid=shadow.uid, container="notebook")
        for shadow, (_, phase) in zip(shadows, standing, strict=True)
        if phase not in (GrantPhase.LOST, GrantPhase.REMOVED)
    )
    mount = given.mount(limits=limits, **spec)
    return given.observation(mount=mount, shadows=shadows, agent=given.agent(grants=grants))


EDITED = st.builds(
    _edited,
    NUMBERS,
    st.dictionaries(RESOURCES, COUNTS, min_size=1),
    unmount=st.sampled_from([{}, {"whenBusy": "Terminate"}]),
)


def held(shadows: Iterable[ShadowPod]) -> dict[str, int]:
    """Return what these shadow pods stand for together."""
    total: dict[str, int] = {}
    for shadow in shadows:
        for name, count in shadow.resources.items():
            total[name] = total.get(name, 0) + count
    return total


def carried_out(observation: Observation, decision: Decision) -> Observation:
    """Return what is so once all actions have succeeded, and what was asked for is granted."""
    shadows, grants = list(observation.shadows), list(observation.agent.grants)
    for action in decision.actions:
        if isinstance(action, DeleteShadowPod):
            shadows = [shadow for shadow in shadows if shadow.uid != action.uid]
            grants = [grant for grant in grants if grant.shadow_uid != action.uid]
        elif isinstance(action, CreateShadowPod):
            name = f"dm-11111111-22222222-{action.ordinal}"
            uid = PodUID(f"made-{len(shadows)}-{action.ordinal}")
            shadows.append(given.shadow(uid=uid, name=name, resources=action.resources))
        elif isinstance(action, StartApply):
            grants = [given.grant(shadow_uid=s.uid, container="notebook") for s in shadows]
    agent = replace(observation.agent, grants=tuple(grants))
    return replace(observation, shadows=tuple(shadows), agent=agent)


def is_proved(observation: Observation, uid: PodUID, place: Place, done: list[Action]) -> bool:
    """Say whether nothing of a shadow pod can be used, by what was known or has been done."""
    grants = {grant.shadow_uid: grant for grant in observation.agent.grants}
    removed = uid in grants and grants[uid].phase is GrantPhase.REMOVED
    asked = any(
        isinstance(action, Remove)
        and action.place == place
        and (not action.shadow_uids or uid in action.shadow_uids)
        for action in done
    )
    return removed or uid in observation.agent.released or asked


def before(decision: Decision, action: Action) -> list[Action]:
    """Return what has succeeded when this action is carried out."""
    return list(decision.actions[: decision.actions.index(action)])


@settings(max_examples=100, deadline=None)
@for_all(OBSERVATIONS)
def test_every_observation_has_a_decision_that_can_be_written(observation: Observation) -> None:
    decision = chain.decide(observation)
    assert decision.requeue_after_s is None or decision.requeue_after_s >= 0
    if decision.report is not None:
        status = report.render(observation, decision.report).status
        if status is not None:
            api.Status.model_validate({k: v for k, v in status.items() if v is not None})


@settings(max_examples=100, deadline=None)
@for_all(OBSERVATIONS)
def test_a_mount_is_let_go_only_when_nothing_of_it_can_be_used(observation: Observation) -> None:
    decision = chain.decide(observation)
    if DropFinalizer() not in decision.actions:
        return
    assert observation.mount.metadata.deletion_timestamp is not None
    done = before(decision, DropFinalizer())
    for shadow in observation.ours:
        assert is_proved(observation, shadow.uid, shadow.place, done)
        assert shadow.deleting or DeleteShadowPod(name=shadow.name, uid=shadow.uid) in done
    for grant in observation.agent.grants:
        assert is_proved(observation, grant.shadow_uid, grant.place, done)


@settings(max_examples=100, deadline=None)
@for_all(OBSERVATIONS)
def test_of_who_leaves_nothing_is_left(observation: Observation) -> None:
    observation = replace(observation, mount=given.mount(), leaving="its labels do not match")
    decision = chain.decide(observation)
    assert decision.report is None
    done = list(decision.actions)
    for shadow in observation.ours:
        assert is_proved(observation, shadow.uid, shadow.place, done)
    for grant in observation.agent.grants:
        assert is_proved(observation, grant.shadow_uid, grant.place, done)


@settings(max_examples=100, deadline=None)
@for_all(OBSERVATIONS)
def test_a_shadow_pod_is_deleted_only_if_ours_and_released(observation: Observation) -> None:
    decision = chain.decide(observation)
    ours = {shadow.uid: shadow for shadow in observation.ours}
    for action in decision.actions:
        if isinstance(action, DeleteShadowPod):
            place = ours[action.uid].place
            assert is_proved(observation, action.uid, place, before(decision, action))


@settings(max_examples=100, deadline=None)
@for_all(OBSERVATIONS)
def test_what_is_not_wanted_gets_nothing(observation: Observation) -> None:
    actions = chain.decide(observation).actions
    begun = [a for a in actions if isinstance(a, CreateShadowPod | StartApply)]
    if is_unwanted(observation) or observation.held_back_s:
        assert begun == []
    if observation.after:
        assert not any(isinstance(action, CreateShadowPod) for action in begun)
    assert sum(isinstance(a, CreateShadowPod) for a in actions) <= 1


@settings(max_examples=100, deadline=None)
@for_all(OBSERVATIONS)
def test_nothing_is_reserved_out_of_turn_or_against_the_profile(observation: Observation) -> None:
    if any(isinstance(a, CreateShadowPod) for a in chain.decide(observation).actions):
        assert observation.turn is None or not observation.turn.ahead
        for fact in observation.facts or ():
            assert not fact.refused
            assert not fact.env_only


@settings(max_examples=100, deadline=None)
@for_all(OBSERVATIONS)
def test_ready_is_said_only_of_devices_that_an_agent_verified(observation: Observation) -> None:
    said = chain.decide(observation).report
    if said is not None and said.reason is Reason.MOUNTED:
        shadows = observation.standing
        assert held(shadows) == observation.mount.spec.resources.limits
        for shadow in shadows:
            grant = observation.grant_of(shadow)
            assert grant is not None
            waits = grant.phase is GrantPhase.BUSY and grant.granted_wall is not None
            assert waits or grant.phase is GrantPhase.GRANTED


@settings(max_examples=300, deadline=None)
@for_all(EDITED)
def test_an_edit_takes_nothing_that_is_wanted_still(observation: Observation) -> None:
    actions = chain.decide(observation).actions
    going = {uid for a in actions if isinstance(a, Remove) for uid in a.shadow_uids}
    assert not any(isinstance(a, Remove) and not a.shadow_uids for a in actions)
    wanted = observation.mount.spec.resources.limits
    holding = [s for s in observation.standing if holds(observation.grant_of(s))]
    before, after = held(holding), held([s for s in holding if s.uid not in going])
    for name, count in wanted.items():
        assert after.get(name, 0) >= min(count, before.get(name, 0))
    for action in actions:
        if isinstance(action, CreateShadowPod):
            standing = held(observation.standing)
            total = {n: standing.get(n, 0) + action.resources.get(n, 0) for n in wanted}
            assert total == wanted
            assert standing.keys() | action.resources.keys() == wanted.keys()


@settings(max_examples=100, deadline=None)
@for_all(EDITED)
def test_an_edit_comes_to_an_end(observation: Observation) -> None:
    """What was removed is gone, what was made is granted: until nothing is left to be done."""
    for _ in range(9):
        decision = chain.decide(observation)
        if decision.report is not None and decision.report.reason is Reason.MOUNTED:
            assert held(observation.standing) == observation.mount.spec.resources.limits
            return
        if decision.report is not None and decision.report.reason is Reason.SHRINK_NOT_POSSIBLE:
            return
        observation = carried_out(observation, decision)
    raise AssertionError("it goes on for ever")


@settings(max_examples=100, deadline=None)
@for_all(OBSERVATIONS)
def test_processes_are_ended_only_where_the_mount_says_so(observation: Observation) -> None:
    unmount = observation.mount.spec.unmount
    for action in chain.decide(observation).actions:
        if isinstance(action, Remove) and action.policy is RemovePolicy.TERMINATE:
            assert unmount.when_busy == "Terminate"
            assert not action.include_main


@settings(max_examples=100, deadline=None)
@for_all(OBSERVATIONS)
def test_what_happened_is_told_of_what_opens_and_once(observation: Observation) -> None:
    known, nothing = happened.tell(observation, {})
    assert nothing == ()
    agent = observation.agent
    later = tuple(replace(g, repairs=g.repairs + 1, restarts=g.restarts + 1) for g in agent.grants)
    observation = replace(observation, agent=replace(agent, grants=later))
    known, events = happened.tell(observation, known)
    assert len(events) == 2 * sum(map(is_granted, agent.grants))
    assert happened.tell(observation, known) == (known, ())


@settings(max_examples=100, deadline=None)
@for_all(OBSERVATIONS)
def test_ready_never_outlives_the_grant(observation: Observation) -> None:
    ready = given.mount(
        status={"conditions": [{"type": "Ready", "status": "True", "reason": "Mounted"}]}
    )
    observation = replace(observation, mount=ready, leaving="")  # whose row goes in any case
    decision = chain.decide(observation)
    if decision.report is None:
        assert decision.requeue_after_s == 0, "the target is read first"
    elif decision.report.reason is not Reason.MOUNTED:
        status = report.render(observation, decision.report).status
        assert status is not None
        assert status["ready"] != "1/1"


@settings(max_examples=100, deadline=None)
@for_all(OBSERVATIONS, REFUSALS)
def test_every_refusal_is_told_and_tried_again(observation: Observation, refusal: Refusal) -> None:
    decision = chain.refused(observation, refusal)
    assert decision.actions == ()
    assert decision.requeue_after_s is not None
    assert 0 < decision.requeue_after_s <= 300
    if decision.report is not None:
        report.render(observation, decision.report)
