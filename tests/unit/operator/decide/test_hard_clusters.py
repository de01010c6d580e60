# SPDX-License-Identifier: Apache-2.0
"""Nodes that are being emptied, kubelets that reject, pods that somebody's finalizer keeps."""

from typing import Any

import pytest

from devicemount_operator.decide.chain import decide
from devicemount_operator.decide.decision import (
    CreateShadowPod,
    Decision,
    DeleteShadowPod,
    Remove,
    RemovePolicy,
)
from devicemount_operator.decide.needs import needs_node
from devicemount_operator.decide.observation import (
    GrantPhase,
    NodeName,
    Observation,
    PodPhase,
    PodUID,
    Setback,
    TargetAbsent,
)
from devicemount_operator.reasons import Reason
from unit.operator import given
from unit.operator.given import NODE, NOW, PLACE, SHADOW_NAME, SHADOW_UID

CORDONED = given.node(leaving="is cordoned")
OLD = PodUID("77777777-0000-4000-8000-000000000000")


def reason_of(decision: Decision) -> Reason | None:
    return None if decision.report is None else decision.report.reason


def creates(decision: Decision) -> bool:
    return any(isinstance(action, CreateShadowPod) for action in decision.actions)


def setback(reason: Reason = Reason.RESERVATION_LOST, **changes: Any) -> Setback:
    fields = {
        "message": "it was lost",
        "count": 1,
        "at": NOW - 3,
        "until": NOW - 1,
        "generation": 1,
    }
    return Setback(reason=reason, **{**fields, **changes})


def says(reason: Reason) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "False", "reason": reason.value, "message": ""}
    return {"observedGeneration": 1, "conditions": [ready]}


ROW = {"podUID": PLACE.target_uid, "reason": Reason.NODE_DRAINING.value}
LOST = {
    "this operator saw the loss": {"setback": setback()},
    "status tells an operator that starts": {
        "mount": given.mount(status=says(Reason.RESERVATION_LOST))
    },
    "it is so already": {"mount": given.mount(status=says(Reason.NODE_DRAINING))},
    "it is so of one of several target pods": {
        "mount": given.mount(status={"observedGeneration": 1, "targets": [ROW]})
    },
}


@pytest.mark.parametrize("seen", LOST.values(), ids=LOST)
def test_after_a_loss_the_node_is_read_and_a_cordoned_one_gets_nothing(
    seen: dict[str, Any],
) -> None:
    assert needs_node(given.observation(**seen)) == NODE
    decision = decide(given.observation(**seen, node=CORDONED))
    assert reason_of(decision) is Reason.NODE_DRAINING
    assert decision.report is not None
    assert decision.report.message == (
        "node node1 is cordoned, and the reservation there was taken away. It ends when the target "
        "pod leaves the node, or the node is uncordoned."
    )
    assert decision.actions == ()
    assert decision.requeue_after_s == 5.0
    assert creates(decide(given.observation(**seen, node=given.node())))


def test_a_mount_without_a_loss_reads_no_node_and_may_use_a_cordoned_one() -> None:
    assert needs_node(given.observation()) is None
    assert creates(decide(given.observation(node=CORDONED)))


def test_the_other_reasons_for_trying_again_read_no_node() -> None:
    assert needs_node(given.observation(setback=setback(Reason.QUOTA_EXCEEDED))) is None


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        pytest.param({"target": TargetAbsent()}, Reason.TARGET_NOT_FOUND, id="gone"),
        pytest.param({"target": given.target(deleting=True)}, Reason.TARGET_NOT_RUNNING, id="ends"),
    ],
)
def test_a_drain_ends_with_its_target(seen: dict[str, Any], reason: Reason) -> None:
    decision = decide(given.observation(setback=setback(), node=CORDONED, **seen))
    assert reason_of(decision) is reason


def test_a_target_that_has_moved_is_served_on_its_new_node() -> None:
    moved = given.target(node=NodeName("node2"))
    nodes = given.agent(nodes=frozenset({NODE, NodeName("node2")}))
    decision = decide(given.observation(target=moved, agent=nodes, setback=setback()))
    assert creates(decision)


def failed(failure: str, text: str = "no") -> Observation:
    pod = given.shadow(phase=PodPhase.FAILED, failure=failure, failure_text=text)
    return given.observation(shadows=(pod,))


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("UnexpectedAdmissionError", Reason.INSUFFICIENT),
        ("TopologyAffinityError", Reason.INSUFFICIENT),
        (f"OutOf{given.RESOURCE}", Reason.INSUFFICIENT),
        ("OutOfpods", Reason.UNSCHEDULABLE),
        ("OutOfmemory", Reason.UNSCHEDULABLE),
        ("Evicted", Reason.UNSCHEDULABLE),
        ("NodeAffinity", Reason.UNSCHEDULABLE),
        ("TaintToleration", Reason.UNSCHEDULABLE),
        ("ContainerCannotRun", Reason.SHADOW_NOT_RUNNING),
    ],
)
def test_a_rejection_is_told_by_its_kind_in_the_kubelets_words(
    failure: str, reason: Reason
) -> None:
    decision = decide(failed(failure, "in its words"))
    assert reason_of(decision) is reason
    assert decision.report is not None
    assert f"({failure}: in its words)" in decision.report.message
    assert DeleteShadowPod(name=SHADOW_NAME, uid=SHADOW_UID) in decision.actions


def test_a_kubelet_that_rejects_for_ever_costs_ten_pods_in_five_minutes() -> None:
    made, now, last = 0, NOW, None
    while now < NOW + 300:
        made += 1
        pod = given.shadow(phase=PodPhase.FAILED, failure="UnexpectedAdmissionError")
        decision = decide(given.observation(shadows=(pod,), setback=last, now=now))
        last = decision.setback
        assert last is not None
        now = last.until
    assert made <= 10


def test_who_took_it_away_is_told() -> None:
    why = (
        "PreemptionByScheduler: default-scheduler: preempting to accommodate a higher priority pod"
    )
    decision = decide(given.mounted(shadows=(given.shadow(deleting=True, disruption=why),)))
    assert decision.report is not None
    assert f"was deleted or evicted ({why})" in decision.report.message


def kept(**changes: Any) -> Observation:
    """A mount whose device opens, and an earlier shadow pod that a finalizer keeps."""
    left = given.shadow(
        name="dm-11111111-22222222-1", uid=OLD, deleting=True, phase=PodPhase.FAILED
    )
    return given.mounted(shadows=(given.shadow(), left), **changes)


def test_a_pod_that_a_finalizer_keeps_is_proved_empty_once_and_in_silence() -> None:
    decision = decide(kept())
    remove = Remove(place=PLACE, policy=RemovePolicy.LOST, shadow_uids=(OLD,))
    assert decision.actions == (remove,)
    assert decision.report is None
    assert decision.setback is None
    proved = given.agent(grants=(given.grant(),), container="notebook", released=frozenset({OLD}))
    after = decide(kept(agent=proved))
    assert after.actions == ()
    assert reason_of(after) is Reason.MOUNTED


def test_a_pod_that_ends_with_a_device_is_a_loss_whoever_keeps_it() -> None:
    granted = given.grant(GrantPhase.GRANTED, shadow_uid=OLD, shadow_name="dm-11111111-22222222-1")
    seen_by = given.agent(grants=(given.grant(), granted), container="notebook")
    assert reason_of(decide(kept(agent=seen_by))) is Reason.RESERVATION_LOST
    row = {"podUID": PLACE.target_uid, "nodeName": NODE, "shadowPods": ["dm-11111111-22222222-1"]}
    told = given.mount(status={"observedGeneration": 1, "targets": [row]})
    assert reason_of(decide(kept(mount=told))) is Reason.RESERVATION_LOST


def test_nothing_is_reserved_twice_while_a_finalizer_keeps_the_only_pod() -> None:
    """It is lost once, and after the pause the next name is taken."""
    left = given.shadow(deleting=True, phase=PodPhase.FAILED)
    first = decide(given.observation(shadows=(left,)))
    assert reason_of(first) is Reason.RESERVATION_LOST
    assert not creates(first)
    proved = given.agent(released=frozenset({SHADOW_UID}))
    again = decide(given.observation(shadows=(left,), agent=proved, setback=setback()))
    assert creates(again)
    assert CreateShadowPod(1, {given.RESOURCE: 1}) in again.actions
