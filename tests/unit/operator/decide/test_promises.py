# SPDX-License-Identifier: Apache-2.0
"""What holds for every Observation, however absurd: nothing is given away unproved."""

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
    TargetAbsent,
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
    applying=st.none() | UIDS,
    container=st.sampled_from([None, "notebook"]),
    refusal=st.none() | REFUSALS,
    ended=st.dictionaries(UIDS, TIMES, max_size=2),
)
SETBACKS = st.builds(
    Setback,
    reason=TROUBLES,
    message=TEXTS,
    count=st.integers(1, 10**6),
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
    target=st.none() | st.just(TargetAbsent()) | PODS,
    shadows=st.lists(SHADOWS, max_size=3, unique_by=lambda s: s.uid).map(tuple),
    node=st.sampled_from([None, given.node(), given.node(enabled=False)]),
    facts=st.none() | FACTS.map(lambda fact: (fact,)),
    turn=st.none() | TURNS,
    agent=AGENTS,
    setback=st.none() | SETBACKS,
    milestones=st.builds(Milestones, seen=st.none() | TIMES, applied=st.none() | TIMES),
).map(_consistent)


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
    if is_unwanted(observation.mount) or observation.held_back_s:
        assert begun == []
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
        shadow = observation.current
        assert shadow is not None
        grant = observation.grant_of(shadow)
        assert grant is not None
        waits = grant.phase is GrantPhase.BUSY and grant.granted_wall is not None
        assert waits or grant.phase is GrantPhase.GRANTED


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
    observation = replace(observation, mount=ready)
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
