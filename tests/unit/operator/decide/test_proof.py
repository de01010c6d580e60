# SPDX-License-Identifier: Apache-2.0
"""What stands for an agent that stays silent, and what does not."""

from dataclasses import replace
from typing import Any

import pytest

from devicemount_operator.decide import chain, proof
from devicemount_operator.decide.decision import (
    By,
    DeleteShadowPod,
    Discharge,
    DropFinalizer,
    EventType,
    Proof,
    Remove,
)
from devicemount_operator.decide.needs import needs_node, needs_target
from devicemount_operator.decide.observation import (
    AgentView,
    ContainerID,
    GrantPhase,
    NodeName,
    Observation,
    PodPhase,
    Silence,
    TargetAbsent,
    TargetPod,
)
from devicemount_operator.reasons import Reason
from unit.operator import given
from unit.operator.given import CONTAINER_ID, NODE, NOW, PLACE, SHADOW_NAME, SHADOW_UID

GONE = given.node(enabled=False)
GONE = replace(GONE, is_deleted=True, allocatable={})
DOWN = replace(given.node(), is_out_of_service=True)
WORD = {"annotations": {proof.RELEASE: "rack 7 burnt down"}}
MUTE = Silence(NOW - 10, 3)
DELETE = DeleteShadowPod(name=SHADOW_NAME, uid=SHADOW_UID)
DEVICES = (f"{given.RESOURCE} vcs1",)


def silent(**changes: Any) -> AgentView:
    fields: dict[str, Any] = {
        "nodes": frozenset(),
        "grants": (given.grant(),),
        "unanswered": {NODE: MUTE},
    }
    return given.agent(**{**fields, **changes})


def over(**changes: Any) -> TargetPod:
    fields = {"deleting": True, "has_ended": True, "ended": frozenset({CONTAINER_ID})}
    return given.target(**{**fields, **changes})


def deleted(**changes: Any) -> Observation:
    """A deletion that waits for an agent that does not answer."""
    fields: dict[str, Any] = {"mount": given.deleted(), "agent": silent()}
    return given.mounted(**{**fields, **changes})


PROVED = [
    pytest.param(
        deleted(node=GONE),
        By.NODE,
        "node node1 was deleted, and its agent does not answer",
        id="its node was deleted",
    ),
    pytest.param(
        deleted(node=DOWN),
        By.NODE,
        "node node1 is tainted as out of service, and its agent does not answer",
        id="its node is out of service, says an administrator",
    ),
    pytest.param(
        deleted(node=DOWN, agent=silent(nodes=frozenset({NODE}))),
        By.NODE,
        "node node1 is tainted as out of service, and its agent does not answer",
        id="the agent's pod still has an address there",
    ),
    pytest.param(
        deleted(node=given.node(), target=over()),
        By.POD,
        "pod notebook-0 has ended with all its containers, says its kubelet",
        id="the last that is seen of the pod: it goes, and no container is left",
    ),
    pytest.param(
        deleted(node=given.node(), target=over(deleting=False, phase=PodPhase.FAILED)),
        By.POD,
        "pod notebook-0 has ended with all its containers, says its kubelet",
        id="the pod has failed, and no container is left",
    ),
    pytest.param(
        deleted(node=given.node(), target=TargetAbsent(), last=over()),
        By.POD,
        "pod notebook-0 has ended with all its containers, says its kubelet",
        id="the pod is gone, and its last object was seen",
    ),
    pytest.param(
        deleted(mount=given.deleted(metadata=WORD), node=given.node(), target=TargetAbsent()),
        By.ADMINISTRATOR,
        "rack 7 burnt down",
        id="an administrator answers for it",
    ),
]


@pytest.mark.parametrize(("seen", "by", "text"), PROVED)
def test_a_deletion_ends_without_its_agent(seen: Observation, by: By, text: str) -> None:
    discharge = Discharge(place=PLACE, shadow_uids=(), proof=Proof(by, text), devices=DEVICES)
    assert chain.decide(seen).actions == (discharge, DELETE, DropFinalizer())


NOT_PROVED = [
    pytest.param(deleted(node=given.node()), id="the node lives, and the agent is gone for good"),
    pytest.param(deleted(), id="nobody has asked for the node"),
    pytest.param(
        deleted(node=given.node(), target=TargetAbsent()),
        id="the pod is gone, and nobody saw how: it may have been forced",
    ),
    pytest.param(
        deleted(node=given.node(), target=TargetAbsent(), last=over(has_ended=False)),
        id="the pod was deleted by force, and its last object has a container that runs",
    ),
    pytest.param(
        deleted(node=given.node(), target=over(has_ended=False)), id="a container of it runs on"
    ),
    pytest.param(
        deleted(node=given.node(), target=over(ended=frozenset({ContainerID("earlier")}))),
        id="the kubelet's last word is about an earlier container",
    ),
    pytest.param(
        deleted(node=given.node(), target=over(uid="99999999-0000-4000-8000-000000000000")),
        id="another pod of that name has ended",
    ),
    pytest.param(
        deleted(node=replace(GONE, name=NodeName("node2"))), id="another node was deleted"
    ),
    pytest.param(
        deleted(node=GONE, agent=silent(unanswered={NODE: replace(MUTE, times=2)})),
        id="the node was deleted, and its agent may only be busy",
    ),
    pytest.param(
        deleted(node=GONE, agent=silent(unanswered={NODE: replace(MUTE, since=NOW - 9)})),
        id="the node was deleted, and its agent may be starting",
    ),
    pytest.param(
        deleted(node=GONE, agent=silent(unanswered={})),
        id="the node was deleted, and its agent was not asked",
    ),
    pytest.param(
        deleted(node=DOWN, agent=silent(unanswered={NodeName("node2"): MUTE})),
        id="another node's agent is silent",
    ),
    pytest.param(
        deleted(mount=given.deleted(metadata=WORD), agent=silent(unanswered={})),
        id="an administrator's word does not stand for an agent that was not asked",
    ),
    pytest.param(
        deleted(mount=given.mount(metadata=WORD, suspend=True)),
        id="an administrator's word about a mount that is not being deleted",
    ),
    pytest.param(
        deleted(mount=given.deleted(metadata={"annotations": {proof.RELEASE: ""}})),
        id="an administrator who gives no reason",
    ),
]


@pytest.mark.parametrize("seen", NOT_PROVED)
def test_it_is_asked_again_and_nothing_is_released(seen: Observation) -> None:
    actions = chain.decide(seen).actions
    assert isinstance(actions[0], Remove)
    assert not any(isinstance(action, Discharge) for action in actions)


def test_a_release_on_somebodys_word_names_the_devices() -> None:
    seen = deleted(mount=given.deleted(metadata=WORD), node=given.node())
    warning = chain.decide(seen).events[0]
    assert (warning.type, warning.reason) == (EventType.WARNING, "ReleasedWithoutProof")
    assert warning.message == (
        f"{given.RESOURCE} vcs1 on node node1 is given back and may be in use there still, on an "
        "administrator's word: rack 7 burnt down"
    )


def test_a_release_that_is_proved_is_no_warning() -> None:
    seen = deleted(mount=given.deleted(metadata=WORD), node=GONE)
    assert all(event.reason != proof.RELEASED for event in chain.decide(seen).events)


def test_what_only_status_remembers_is_released_with_its_node() -> None:
    row = {"podUID": PLACE.target_uid, "nodeName": NODE, "shadowPods": [SHADOW_NAME]}
    status = {"observedGeneration": 1, "targets": [row]}
    seen = given.observation(
        mount=given.deleted(status=status), target=None, node=GONE, agent=silent(grants=())
    )
    assert needs_node(seen) == NODE
    proved = Proof(By.NODE, "node node1 was deleted, and its agent does not answer")
    discharge = Discharge(place=PLACE, shadow_uids=(), proof=proved, devices=())
    assert chain.decide(seen).actions == (discharge, DropFinalizer())


def test_a_target_that_moved_on_does_not_wait_for_its_dead_node() -> None:
    """The pod was made again elsewhere: what it had on the deleted node is given up."""
    again = given.target(uid="99999999-0000-4000-8000-000000000000", node=NodeName("node2"))
    agent = silent(nodes=frozenset({NodeName("node2")}))
    decision = chain.decide(given.mounted(target=again, node=GONE, agent=agent))
    assert [type(action) for action in decision.actions] == [Discharge, DeleteShadowPod]


def test_node_and_pod_are_read_once_an_agent_stays_silent() -> None:
    asked = silent(nodes=frozenset({NODE}), unanswered={NODE: replace(MUTE, times=1)})
    assert needs_node(deleted(agent=asked)) is None
    assert not needs_target(deleted(agent=asked))
    mute = silent(nodes=frozenset({NODE}))
    assert needs_node(deleted(agent=mute)) == NODE
    assert needs_target(deleted(agent=mute))
    released = silent(grants=(given.grant(GrantPhase.REMOVED),))
    assert not needs_target(deleted(agent=released))


def test_a_node_that_is_gone_is_not_said_to_lack_a_label() -> None:
    refusal = given.refusal(Reason.AGENT_UNAVAILABLE, "no agent runs on node node1")
    report = chain.refused(deleted(node=GONE), refusal).report
    assert report is not None
    assert report.reason is Reason.AGENT_UNAVAILABLE
