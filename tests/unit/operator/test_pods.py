# SPDX-License-Identifier: Apache-2.0
"""Pods as the API server shows them, parsed."""

from typing import Any

import pytest

from devicemount_operator import pods, shadow_pod
from devicemount_operator.decide.observation import ContainerState, PodPhase
from unit.operator import given

IMAGE = "localhost/devicemount-hold:dev"


def target_json(status: dict[str, Any], restart_policy: str = "Always") -> dict[str, Any]:
    return {
        "metadata": {"name": "notebook-0", "uid": given.TARGET_UID},
        "spec": {
            "nodeName": "node1",
            "restartPolicy": restart_policy,
            "initContainers": [{"name": "setup"}],
            "containers": [{"name": "notebook"}],
        },
        "status": {"phase": "Running", "containerStatuses": [{"name": "notebook", **status}]},
    }


CRASHED = {"terminated": {"exitCode": 1, "reason": "Error"}}
DONE = {"terminated": {"exitCode": 0, "reason": "Completed"}}


@pytest.mark.parametrize(
    ("state", "policy", "expected"),
    [
        pytest.param({"running": {}}, "Always", ContainerState.RUNNING, id="it runs"),
        pytest.param({}, "Always", ContainerState.WAITING, id="nothing is known of it"),
        pytest.param({"waiting": {}}, "Never", ContainerState.WAITING, id="it waits"),
        pytest.param(CRASHED, "Always", ContainerState.WAITING, id="it will start again"),
        pytest.param(CRASHED, "OnFailure", ContainerState.WAITING, id="a failure starts again"),
        pytest.param(DONE, "OnFailure", ContainerState.FINISHED, id="a success is final"),
        pytest.param(CRASHED, "Never", ContainerState.FINISHED, id="never started again"),
    ],
)
def test_state_of_a_container(state: dict[str, Any], policy: str, expected: ContainerState) -> None:
    (container,) = pods.to_target(target_json({"state": state}, policy)).containers
    assert container.state is expected


def test_a_containers_own_restart_policy_counts() -> None:
    pod = target_json({"state": CRASHED})
    pod["spec"]["containers"][0]["restartPolicy"] = "Never"
    assert pods.to_target(pod).containers[0].state is ContainerState.FINISHED


def test_only_a_running_container_has_an_id() -> None:
    status = {"containerID": "containerd://c0ffee", "state": {"running": {}}}
    assert pods.to_target(target_json(status)).containers[0].container_id == "c0ffee"
    status = {"containerID": "containerd://c0ffee", "state": CRASHED}
    assert pods.to_target(target_json(status)).containers[0].container_id is None


def test_why_it_waits_is_told_in_the_kubelets_words() -> None:
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    assert pods.to_target(target_json({"state": state})).containers[0].detail == (
        "CrashLoopBackOff: back-off 10s"
    )


def test_a_pod_that_was_just_posted_has_no_status() -> None:
    pod = {"metadata": {"name": "a", "uid": "b"}, "spec": {"containers": [{"name": "c"}]}}
    parsed = pods.to_target(pod)
    assert (parsed.phase, parsed.node, parsed.priority) == (PodPhase.PENDING, None, None)


def shadow_json(**status: Any) -> dict[str, Any]:
    pod = shadow_pod.build(given.mount(), target=given.target(), ordinal=3, image=IMAGE)
    pod["metadata"]["uid"] = given.SHADOW_UID
    return {**pod, "status": status}


def parsed_shadow(pod: dict[str, Any]) -> Any:
    return pods.to_shadow(pod, mount=given.mount(), image=IMAGE, seen=1.0, hold_down_since=None)


def test_a_shadow_pod_that_was_just_posted() -> None:
    shadow = parsed_shadow(shadow_json())
    assert shadow == given.shadow(name="dm-11111111-22222222-3", scheduled=False, seen=1.0)


def test_what_the_scheduler_says() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}
    shadow = parsed_shadow(shadow_json(phase="Pending", conditions=[condition]))
    assert shadow.scheduler_text == "0/2 nodes are available"


def test_why_the_kubelet_refused_it() -> None:
    shadow = parsed_shadow(
        shadow_json(phase="Failed", reason="UnexpectedAdmissionError", message="Allocate failed")
    )
    assert (shadow.phase, shadow.failure, shadow.failure_text) == (
        PodPhase.FAILED,
        "UnexpectedAdmissionError",
        "Allocate failed",
    )


def hold_status(state: dict[str, Any]) -> dict[str, Any]:
    pod = shadow_json(containerStatuses=[{"name": "hold", "state": state}])
    pod["spec"]["nodeName"] = "node1"
    return pod


def test_hold_is_down_from_the_moment_a_node_has_the_pod() -> None:
    assert not pods.is_hold_down(shadow_json())
    assert pods.is_hold_down(hold_status({"waiting": {"reason": "ContainerCreating"}}))
    assert not pods.is_hold_down(hold_status({"running": {}}))
    assert parsed_shadow(hold_status({"waiting": {"reason": "ErrImagePull"}})).hold_text == (
        "ErrImagePull"
    )


def test_a_node_offers_whole_extended_resources() -> None:
    allocatable = {"cpu": "2", "memory": "1Gi", given.RESOURCE: "4", "hugepages-2Mi": "0"}
    node = pods.to_node({"metadata": {"name": "node1"}, "status": {"allocatable": allocatable}})
    assert node.allocatable == {given.RESOURCE: 4}


@pytest.mark.parametrize(
    ("labels", "is_enabled"),
    [
        pytest.param({"devicemount.io/enabled": "true"}, True, id="lent"),
        pytest.param({"devicemount.io/enabled": "false"}, False, id="not lent"),
        pytest.param(None, False, id="no labels at all"),
    ],
)
def test_a_node_is_lent_by_its_label(*, labels: dict[str, str] | None, is_enabled: bool) -> None:
    assert pods.to_node({"metadata": {"name": "n", "labels": labels}}).is_enabled is is_enabled


@pytest.mark.parametrize(
    ("status", "is_undecided"),
    [
        pytest.param({}, True, id="just posted"),
        pytest.param({"phase": "Pending"}, True, id="no container is spoken of"),
        pytest.param(
            {"phase": "Pending", "containerStatuses": [{"name": "hold", "state": {}}]},
            False,
            id="the kubelet has admitted it",
        ),
        pytest.param({"phase": "Failed"}, False, id="the kubelet has refused it"),
    ],
)
def test_the_kubelet_may_still_be_choosing(*, status: dict[str, Any], is_undecided: bool) -> None:
    assert pods.is_undecided(shadow_json(**status)) is is_undecided


def test_what_is_deleted_before_it_was_placed_reaches_no_kubelet() -> None:
    pod = shadow_json(phase="Pending")
    pod["metadata"] |= {"deletionTimestamp": "2026-11-26T07:00:00Z", "finalizers": ["tenant/stays"]}
    assert not pods.is_undecided(pod)
    pod["spec"]["nodeName"] = given.NODE
    assert pods.is_undecided(pod), "a kubelet may yet take it in"


def test_a_claim_that_serves_the_devices_is_named() -> None:
    claim = {"resourceClaimName": "gpu-x", "requestMappings": []}
    assert parsed_shadow(shadow_json(extendedResourceClaimStatus=claim)).claim == "gpu-x"
