# SPDX-License-Identifier: Apache-2.0
"""Pods as the API server shows them, parsed."""

from typing import Any

import pytest

from devicemount_operator import pods, shadow_pod
from devicemount_operator.api.v1alpha1 import Target
from devicemount_operator.decide.observation import ContainerState, PodPhase, choice
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


def described(kind: str, spec: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """A pod whose container `aside` is of another kind than the regular ones."""
    pod = target_json({"state": {"running": {}}})
    statuses = {"initContainers": "initContainerStatuses"}.get(kind, "ephemeralContainerStatuses")
    pod["spec"][kind] = [{"name": "aside", **spec}]
    pod["status"][statuses] = [{"name": "aside", "state": state, "containerID": "x://aside1"}]
    return pod


@pytest.mark.parametrize(
    ("kind", "spec", "state", "expected"),
    [
        pytest.param("initContainers", {}, {"running": {}}, ContainerState.RUNNING, id="init runs"),
        pytest.param("initContainers", {}, DONE, ContainerState.FINISHED, id="init has completed"),
        pytest.param("initContainers", {}, CRASHED, ContainerState.WAITING, id="init is retried"),
        pytest.param(
            "initContainers",
            {"restartPolicy": "Always"},
            DONE,
            ContainerState.WAITING,
            id="sidecar",
        ),
        pytest.param(
            "initContainers",
            {"restartPolicy": "Never"},
            CRASHED,
            ContainerState.FINISHED,
            id="once",
        ),
        pytest.param(
            "ephemeralContainers", {}, {"running": {}}, ContainerState.RUNNING, id="ephemeral runs"
        ),
        pytest.param(
            "ephemeralContainers", {}, CRASHED, ContainerState.FINISHED, id="ephemeral has ended"
        ),
    ],
)
def test_other_containers_are_targets_where_they_are_named(
    kind: str, spec: dict[str, Any], state: dict[str, Any], expected: ContainerState
) -> None:
    pod = pods.to_target(described(kind, spec, state))
    named = choice(Target(pod_name="notebook-0", container="aside"), pod)
    assert named is not None
    assert named.state is expected
    default = choice(Target(pod_name="notebook-0"), pod)
    assert default is not None
    assert default.name == "notebook"


def test_in_a_pod_that_is_being_deleted_nothing_starts_again() -> None:
    pod = target_json({"state": CRASHED})
    pod["metadata"]["deletionTimestamp"] = "2026-11-26T07:00:00Z"
    assert pods.to_target(pod).containers[0].state is ContainerState.FINISHED


HASH = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("annotation", "uid"),
    [
        pytest.param(HASH, HASH, id="a static pod: its node's UID"),
        pytest.param(given.SHADOW_UID, given.SHADOW_UID, id="a static pod whose file has a UID"),
        pytest.param("../../etc", given.TARGET_UID, id="what is no UID is none"),
        pytest.param("a" * 65, given.TARGET_UID, id="too long"),
        pytest.param("", given.TARGET_UID, id="empty"),
    ],
)
def test_a_target_is_known_by_the_uid_that_its_node_knows(annotation: str, uid: str) -> None:
    pod = target_json({"state": {"running": {}}})
    pod["metadata"]["annotations"] = {"kubernetes.io/config.mirror": annotation}
    target = pods.to_target(pod)
    assert (target.uid, target.api_uid) == (uid, given.TARGET_UID)


def test_a_static_pods_shadow_is_owned_by_the_object_that_exists() -> None:
    target = given.target(uid=HASH)
    pod = shadow_pod.build(
        given.mount(), target=target, ordinal=0, image=IMAGE, resources={given.RESOURCE: 1}
    )
    assert pod["metadata"]["name"] == "dm-11111111-01234567-0"
    assert pod["metadata"]["ownerReferences"][1]["uid"] == given.TARGET_UID
    assert shadow_pod.target_uid_of(pod) == HASH


RUNS = {"running": {}}
ENDS = {"deletionTimestamp": "2026-11-26T07:00:00Z"}


@pytest.mark.parametrize(
    ("meta", "phase", "states", "has_ended"),
    [
        pytest.param(ENDS, "Running", [DONE, DONE], True, id="deleted, and all have ended"),
        pytest.param({}, "Failed", [DONE, CRASHED], True, id="failed, and all have ended"),
        pytest.param({}, "Running", [DONE, DONE], False, id="they may start again"),
        pytest.param(ENDS, "Running", [DONE, RUNS], False, id="one runs on"),
        pytest.param({}, "Failed", [DONE, RUNS], False, id="failed, says a controller"),
        pytest.param(ENDS, "Running", [DONE], False, id="nothing is said of one"),
        pytest.param(ENDS, "Running", [], False, id="nothing is said at all"),
        pytest.param(ENDS, "Running", [DONE, {"waiting": {}}], False, id="one may be starting"),
    ],
)
def test_a_pods_last_word(
    *,
    meta: dict[str, Any],
    phase: str,
    states: list[dict[str, Any]],
    has_ended: bool,
) -> None:
    names = ("notebook", "sidecar")
    statuses = [
        {"name": name, "state": state, "containerID": f"containerd://{name}1"}
        for name, state in zip(names, states, strict=False)
    ]
    pod = target_json({})
    pod["metadata"] |= meta
    pod["spec"]["containers"] = [{"name": name} for name in names]
    pod["status"] = {"phase": phase, "containerStatuses": statuses}
    target = pods.to_target(pod)
    assert target.has_ended is has_ended
    assert target.ended == {
        f"{name}1" for name, state in zip(names, states, strict=False) if "terminated" in state
    }


def test_a_debug_container_that_runs_on_is_a_process_of_the_pod() -> None:
    pod = described("ephemeralContainers", {}, {"running": {}})
    pod["metadata"] |= ENDS
    pod["status"]["containerStatuses"] = [
        {"name": "notebook", "state": DONE, "containerID": "containerd://a"}
    ]
    assert not pods.to_target(pod).has_ended


def test_a_node_that_is_out_of_service_says_so() -> None:
    taint = {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}
    node = {"metadata": {"name": "n"}, "spec": {"taints": [taint]}}
    assert pods.to_node(node).is_out_of_service
    assert not pods.to_node({"metadata": {"name": "n"}, "spec": {}}).is_out_of_service


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
    pod = shadow_pod.build(
        given.mount(), target=given.target(), ordinal=3, resources=given.COUNTS, image=IMAGE
    )
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


@pytest.mark.parametrize(
    ("spec", "leaving"),
    [
        pytest.param(None, "", id="nothing is said"),
        pytest.param({"taints": [{"key": "team", "effect": "NoSchedule"}]}, "", id="a taint"),
        pytest.param({"unschedulable": True}, "is cordoned", id="cordoned"),
        pytest.param(
            {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
            "is about to be removed (taint ToBeDeletedByClusterAutoscaler)",
            id="an autoscaler's choice",
        ),
    ],
)
def test_a_node_that_is_to_be_emptied(spec: dict[str, Any] | None, leaving: str) -> None:
    assert pods.to_node({"metadata": {"name": "n"}, "spec": spec}).leaving == leaving


def test_who_takes_a_shadow_pod_away() -> None:
    said = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": "preempting to accommodate a higher priority pod",
    }
    assert parsed_shadow(shadow_json(conditions=[said])).disruption == (
        "PreemptionByScheduler: preempting to accommodate a higher priority pod"
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
