# SPDX-License-Identifier: Apache-2.0
"""The pod that is posted, and which pods are taken for ours."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from devicemount_operator import shadow_pod
from devicemount_operator.decide.observation import PodUID, PriorityClass
from unit.operator import given

IMAGE = "localhost/devicemount-hold:dev"


def posted(**changes: Any) -> dict[str, Any]:
    return shadow_pod.build(
        given.mount(),
        target=given.target(**changes),
        ordinal=0,
        resources=given.COUNTS,
        image=IMAGE,
    )


def test_name_and_identity_are_deterministic() -> None:
    pod = posted()
    assert pod["metadata"] == {
        "name": "dm-11111111-22222222-0",
        "namespace": "team-a",
        "labels": {
            "app.kubernetes.io/name": "devicemount",
            "app.kubernetes.io/component": "shadow",
            "devicemount.io/shadow": given.MOUNT_UID,
        },
        "annotations": {
            "devicemount.io/mount": "gpu",
            "devicemount.io/target-uid": given.TARGET_UID,
            "devicemount.io/resources": '{"testbed.devicemount.io/vcs": 1}',
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
        },
        "ownerReferences": [
            {
                "apiVersion": "devicemount.io/v1alpha1",
                "kind": "DeviceMount",
                "name": "gpu",
                "uid": given.MOUNT_UID,
                "controller": True,
            },
            {"apiVersion": "v1", "kind": "Pod", "name": "notebook-0", "uid": given.TARGET_UID},
        ],
    }


def test_it_passes_pod_security_restricted() -> None:
    spec = posted()["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (hold,) = spec["containers"]
    assert hold["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & spec.keys()


def test_it_is_the_fence_and_nothing_else() -> None:
    spec = posted()["spec"]
    (hold,) = spec["containers"]
    assert (hold["name"], hold["command"], hold["image"]) == ("hold", ["/hold"], IMAGE)
    assert spec["terminationGracePeriodSeconds"] == 60
    assert spec["restartPolicy"] == "Always"
    assert spec["automountServiceAccountToken"] is False


def test_it_asks_for_the_devices_and_nearly_nothing_else() -> None:
    (hold,) = posted()["spec"]["containers"]
    assert hold["resources"] == {
        "requests": {"cpu": "1m", "memory": "32Mi", given.RESOURCE: "1"},
        "limits": {"cpu": "200m", "memory": "32Mi", given.RESOURCE: "1"},
    }


def test_it_fits_the_targets_node_only() -> None:
    affinity = posted()["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {
        "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node1"]}]
    }


def test_it_tolerates_what_the_target_does_and_every_noschedule() -> None:
    own = given.toleration(
        key="team", operator="Equal", value="a", effect="NoExecute", toleration_seconds=0
    )
    assert posted(tolerations=(own,))["spec"]["tolerations"] == [
        {
            "key": "team",
            "operator": "Equal",
            "value": "a",
            "effect": "NoExecute",
            "tolerationSeconds": 0,
        },
        {"operator": "Exists", "effect": "NoSchedule"},
    ]


@pytest.mark.parametrize(
    ("priority_class", "priority", "expected"),
    [
        pytest.param(
            "p", 1000, {"priorityClassName": "p", "priority": 1000}, id="the target's own"
        ),
        pytest.param(None, 0, {"priority": 0}, id="no class: a later default is refused"),
        pytest.param(None, None, {}, id="a cluster without priorities"),
        pytest.param(
            "system-node-critical", 2_000_001_000, {}, id="the system's is not for tenants"
        ),
    ],
)
def test_priority_is_never_above_the_targets(
    priority_class: str | None, priority: int | None, expected: dict[str, Any]
) -> None:
    spec = posted(priority_class=priority_class, priority=priority)["spec"]
    assert {k: v for k, v in spec.items() if k.startswith("priority")} == expected


def test_a_target_without_a_node_is_refused() -> None:
    with pytest.raises(ValueError, match="notebook-0 has no node"):
        posted(node=None)


Change = Callable[[dict[str, Any]], None]


def path(*keys: Any, value: Any) -> Change:
    def change(pod: dict[str, Any]) -> None:
        at = pod
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


ADDED = [
    pytest.param(lambda pod: None, id="as posted"),
    pytest.param(
        lambda pod: pod["spec"]["containers"].insert(0, {"name": "proxy", "image": "x/proxy:1"}),
        id="a sidecar",
    ),
    pytest.param(path("spec", "schedulingGates", value=[{"name": "q/x"}]), id="a gate"),
    pytest.param(path("metadata", "finalizers", value=["q/m"]), id="a finalizer"),
    pytest.param(path("metadata", "annotations", "cni", value="x"), id="an annotation"),
    pytest.param(path("metadata", "labels", "team", value="x"), id="a label"),
    pytest.param(
        path("spec", "containers", 0, "image", value="mirror:5000/a/devicemount-hold:dev"),
        id="another registry",
    ),
    pytest.param(lambda pod: pod["spec"]["tolerations"].append({"key": "x"}), id="a toleration"),
    pytest.param(lambda pod: pod["metadata"]["ownerReferences"].pop(), id="its target collected"),
    pytest.param(path("spec", "securityContext", "runAsUser", value=1000650000), id="another user"),
]


@pytest.mark.parametrize("change", ADDED)
def test_what_others_add_makes_no_stranger_of_it(change: Change) -> None:
    pod = copy.deepcopy(posted())
    change(pod)
    assert shadow_pod.is_ours(pod, mount=given.mount(), image=IMAGE)


FORGED = [
    pytest.param(lambda pod: pod["metadata"].pop("ownerReferences"), id="no owner"),
    pytest.param(
        path("metadata", "ownerReferences", 0, "uid", value="another"), id="another's owner"
    ),
    pytest.param(
        lambda pod: pod["metadata"]["ownerReferences"][0].pop("controller"), id="no controller"
    ),
    pytest.param(path("metadata", "labels", value={}), id="no label"),
    pytest.param(path("metadata", "annotations", value=None), id="no annotations"),
    pytest.param(
        path("metadata", "annotations", "devicemount.io/target-uid", value="44444444-"),
        id="another target than its name says",
    ),
    pytest.param(path("metadata", "name", value="dm-11111111-22222222-x"), id="another name"),
    pytest.param(path("spec", "containers", 0, "image", value="evil/hold:dev"), id="another image"),
    pytest.param(path("spec", "containers", 0, "command", value=["/sh"]), id="another command"),
    pytest.param(path("spec", "containers", 0, "args", value=["-c"]), id="arguments"),
    pytest.param(path("spec", "containers", 0, "name", value="main"), id="no container hold"),
    pytest.param(path("spec", "terminationGracePeriodSeconds", value=30), id="a lower fence"),
]


@pytest.mark.parametrize("change", FORGED)
def test_a_pod_that_others_made_is_not_ours(change: Change) -> None:
    pod = copy.deepcopy(posted())
    change(pod)
    assert not shadow_pod.is_ours(pod, mount=given.mount(), image=IMAGE)


def test_its_node_is_known_before_and_after_it_is_scheduled() -> None:
    pod = posted()
    assert shadow_pod.node_of(pod) == "node1"
    pod["spec"]["nodeName"] = "node2"
    assert shadow_pod.node_of(pod) == "node2"
    assert shadow_pod.node_of({"metadata": {}, "spec": {}}) == ""


def test_ordinals_come_from_names() -> None:
    assert shadow_pod.ordinal_of("dm-11111111-22222222-12") == 12
    assert shadow_pod.ordinal_of("dm-x") is None
    assert shadow_pod.target_uid_of(posted()) == PodUID(given.TARGET_UID)


def test_a_pod_of_an_earlier_version_is_ours_but_serves_no_new_reservation() -> None:
    pod = copy.deepcopy(posted())
    path("spec", "containers", 0, "image", value="a/devicemount-hold:old")(pod)
    assert shadow_pod.is_ours(pod, mount=given.mount(), image=IMAGE)
    assert not shadow_pod.is_adoptable(pod, mount=given.mount(), image=IMAGE)
    assert shadow_pod.is_adoptable(posted(), mount=given.mount(), image=IMAGE)


def test_the_pod_of_a_deleted_mount_is_ours_after_garbage_collection_took_the_reference() -> None:
    pod = copy.deepcopy(posted())
    del pod["metadata"]["ownerReferences"][0]
    assert shadow_pod.is_ours(pod, mount=given.deleted(), image=IMAGE)
    assert shadow_pod.is_ours(pod, mount=given.mount(), image=IMAGE)  # not known to be deleted yet
    assert not shadow_pod.is_adoptable(pod, mount=given.mount(), image=IMAGE)
    pod["metadata"]["ownerReferences"][0]["uid"] = "another"
    assert not shadow_pod.is_ours(pod, mount=given.mount(), image=IMAGE)


def reserved(*, priority_class: PriorityClass | None = None, **reservation: Any) -> dict[str, Any]:
    return shadow_pod.build(
        given.mount(reservation=reservation),
        target=given.target(priority_class="p", priority=1000),
        ordinal=0,
        resources=given.COUNTS,
        image=IMAGE,
        priority_class=priority_class,
    )


def test_it_is_placed_as_the_mount_says() -> None:
    spec = reserved(schedulerName="volcano", runtimeClassName="nvidia")["spec"]
    assert (spec["schedulerName"], spec["runtimeClassName"]) == ("volcano", "nvidia")
    assert not {"schedulerName", "runtimeClassName"} & posted()["spec"].keys()


def test_a_named_priority_class_goes_with_the_value_that_was_compared() -> None:
    named = PriorityClass(name="low", value=10)
    spec = reserved(priorityClassName="low", priority_class=named)["spec"]
    assert (spec["priorityClassName"], spec["priority"]) == ("low", 10)


def test_annotations_of_the_mount_never_replace_ours() -> None:
    own = {shadow_pod.TARGET_ANNOTATION: "another", "volcano.sh/vgpu-mode": "mig"}
    annotations = reserved(annotations=own)["metadata"]["annotations"]
    assert annotations["volcano.sh/vgpu-mode"] == "mig"
    assert annotations[shadow_pod.TARGET_ANNOTATION] == given.TARGET_UID


def test_what_the_mount_says_of_its_placement_is_no_reason_to_doubt_the_pod() -> None:
    pod = reserved(schedulerName="volcano", annotations={"volcano.sh/vgpu-mode": "mig"})
    assert shadow_pod.is_ours(pod, mount=given.mount(), image=IMAGE)
    assert shadow_pod.is_adoptable(pod, mount=given.mount(), image=IMAGE)


def test_what_it_asks_for_is_read_back() -> None:
    assert shadow_pod.resources_of(posted()) == {given.RESOURCE}
    assert shadow_pod.counts_of(posted()) == given.COUNTS


def test_it_asks_for_what_is_missing_whatever_the_mount_wants() -> None:
    mount, missing = given.mount(limits={given.RESOURCE: 3, "a.io/b": 2}), {given.RESOURCE: 2}
    pod = shadow_pod.build(mount, target=given.target(), ordinal=1, resources=missing, image=IMAGE)
    (hold,) = pod["spec"]["containers"]
    assert {name: n for name, n in hold["resources"]["limits"].items() if "/" in name} == {
        given.RESOURCE: "2"
    }
    assert shadow_pod.counts_of(pod) == missing
    assert shadow_pod.is_adoptable(pod, mount=mount, image=IMAGE)


def test_what_a_webhook_adds_was_not_asked_for() -> None:
    pod = posted()
    pod["spec"]["containers"][0]["resources"]["limits"]["vendor.io/memory"] = "4096"
    assert shadow_pod.counts_of(pod) == given.COUNTS


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"a.io/b": 0}', '{"a.io/b": "x"}'])
def test_without_a_record_of_ours_its_limits_are_what_it_asked_for(text: str | None) -> None:
    pod = posted()
    del pod["metadata"]["annotations"][shadow_pod.RESOURCES_ANNOTATION]
    if text is not None:
        pod["metadata"]["annotations"][shadow_pod.RESOURCES_ANNOTATION] = text
    assert shadow_pod.counts_of(pod) == given.COUNTS


def test_a_pull_secret_is_named_where_one_is_set() -> None:
    assert "imagePullSecrets" not in posted()["spec"]
    pod = shadow_pod.build(
        given.mount(),
        target=given.target(),
        ordinal=0,
        resources=given.COUNTS,
        image=IMAGE,
        pull_secret="registry",
    )
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
