# SPDX-License-Identifier: Apache-2.0
"""The real API server and our CRD: wrong input is refused with what to do, no status ever is."""

from typing import Any

import pytest

from component.operator.scene import LOOP, Scene
from devicemount_operator import errors, shadow_pod
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.decide import chain, report
from devicemount_operator.decide.decision import Report
from devicemount_operator.reasons import Reason
from unit.operator import given

COUNT = "a count is a whole number from 1 to 1048576"
NAME = "only extended resources"


async def refusal(scene: Scene, limits: dict[str, Any], **spec: Any) -> str:
    """Return what the API server says to a mount with these limits."""
    body = scene.mount_body("wrong")
    body["spec"]["resources"]["limits"] = limits
    body["spec"].update(spec)
    with pytest.raises(errors.Invalid) as refused:
        await scene.call("POST", scene.mount_path(""), body)
    return str(refused.value)


@pytest.mark.parametrize(
    "count",
    [
        0,
        "0",
        -1,
        "-1",
        "0.5",
        "01",
        "1048577",
        "9" * 30,
        "500m",
        "1500m",
        "0m",
        "000m",
        "1048577000m",
    ],
)
async def test_a_count_that_is_no_device_is_refused(scene: Scene, count: Any) -> None:
    assert COUNT in await refusal(scene, {LOOP: count})


async def test_a_fraction_is_refused_with_the_path_of_the_field(scene: Scene) -> None:
    said = await refusal(scene, {LOOP: 0.5})
    assert f"spec.resources.limits.{LOOP} in body must be of type integer,string" in said


@pytest.mark.parametrize(
    "name", ["cpu", "memory", "kubernetes.io/x", "requests.a.io/b", "/b", "a.io/", "a.io/b c"]
)
async def test_what_is_no_extended_resource_is_refused(scene: Scene, name: str) -> None:
    assert NAME in await refusal(scene, {name: 1})


async def test_nine_resources_and_none_are_refused(scene: Scene) -> None:
    assert "must have at most 8 items" in await refusal(scene, {f"a.io/{n}": 1 for n in range(9)})
    assert "at least 1 properties" in await refusal(scene, {})


@pytest.mark.parametrize(
    ("unmount", "message"),
    [
        ({"whenBusy": "Kill"}, 'supported values: "Wait", "Terminate"'),
        ({"gracePeriodSeconds": -1}, "greater than or equal to 0"),
        ({"gracePeriodSeconds": 3601}, "less than or equal to 3600"),
        ({"gracePeriodSeconds": "30s"}, "must be of type integer"),
        ({"includeMainProcess": "yes"}, "must be of type boolean"),
    ],
)
async def test_an_unmount_that_is_no_policy_is_refused(
    scene: Scene, unmount: dict[str, Any], message: str
) -> None:
    assert message in await refusal(scene, {LOOP: 1}, unmount=unmount)


def labelled(**labels: str) -> dict[str, Any]:
    return {"selector": {"matchLabels": labels}}


def demanding(key: str, operator: str, *values: str) -> dict[str, Any]:
    demand: dict[str, Any] = {"key": key, "operator": operator}
    return {"selector": {"matchExpressions": [demand | ({"values": values} if values else {})]}}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "names one pod by podName or selects pods by selector: one of both"),
        ({"podName": "a", **labelled(a="b")}, "one of both"),
        ({"podName": "a", "maxPods": 2}, "maxPods belongs to selector"),
        ({"selector": {}}, "an empty selector would select every pod"),
        ({"selector": {"matchLabels": {}, "matchExpressions": []}}, "an empty selector"),
        ({"maxPods": 0, **labelled(a="b")}, "greater than or equal to 1"),
        ({"maxPods": 33, **labelled(a="b")}, "less than or equal to 32"),
        (labelled(**{"a b": "c"}), "a label is a name with an optional domain"),
        (labelled(a="b c"), "a label is a name with an optional domain"),
        (labelled(a="b" * 64), "may not be more than 63 bytes"),
        (labelled(**{f"a{n}": "" for n in range(17)}), "must have at most 16 items"),
        (demanding("a", "In"), "values are needed with In and NotIn"),
        (demanding("a", "NotIn"), "values are needed with In and NotIn"),
        (demanding("a", "Exists", "b"), "forbidden with Exists and DoesNotExist"),
        (demanding("a", "DoesNotExist", "b"), "forbidden with Exists and DoesNotExist"),
        (demanding("a", "Is", "b"), 'supported values: "In"'),
        (demanding("a b", "Exists"), "should match"),
        (demanding("a", "In", "b c"), "should match"),
        (demanding("a", "In", *(str(n) for n in range(33))), "must have at most 32 items"),
    ],
)
async def test_a_target_that_cannot_be_is_refused(
    scene: Scene, target: dict[str, Any], message: str
) -> None:
    assert message in await refusal(scene, {LOOP: 1}, target=target)


@pytest.mark.parametrize(
    "target",
    [
        labelled(**{"app.kubernetes.io/name": "web", "empty": ""}),
        demanding("a", "NotIn", "b", ""),
        demanding("a.io/b", "DoesNotExist"),
        {"maxPods": 32, "container": "main", **labelled(a="b")},
    ],
)
async def test_a_selector_is_stored_as_it_is_written(scene: Scene, target: dict[str, Any]) -> None:
    body = scene.mount_body("many")
    body["spec"]["target"] = target
    stored = await scene.call("POST", scene.mount_path(""), body)
    assert DeviceMount.model_validate(stored).spec.target.selector is not None
    values = body["spec"]["target"]["selector"].get("matchExpressions") or [{}]
    values[0]["values"] = list(values[0]["values"]) if "values" in values[0] else None
    assert stored["spec"]["target"].keys() == target.keys()


async def test_counts_are_stored_as_they_are_written(scene: Scene) -> None:
    counts = {
        "a": (1, 1),
        "b": ("1", 1),
        "c": (16384, 16384),
        "d": ("1000m", 1),
        "e": ("20000m", 20),
    }
    for name, (count, devices) in counts.items():
        body = scene.mount_body(name)
        body["spec"]["resources"]["limits"] = {LOOP: count}
        stored = await scene.call("POST", scene.mount_path(""), body)
        assert stored["spec"] == body["spec"]
        assert stored["status"] == {"observedGeneration": -1}
        assert DeviceMount.model_validate(stored).spec.resources.limits == {LOOP: devices}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reservation": {"acceptEnvFile": True}}, "spec.reservation cannot be changed: delete"),
    ],
)
async def test_what_cannot_be_edited_says_so(
    scene: Scene, change: dict[str, Any], message: str
) -> None:
    await scene.mount()
    with pytest.raises(errors.Invalid, match=message):
        await scene.call("PATCH", scene.mount_path("dm"), {"spec": change})


@pytest.mark.parametrize(
    "change",
    [
        {"resources": {"limits": {LOOP: "3000m"}}},
        {"resources": {"limits": {LOOP: None, "a.io/b": 2}}},
        {"target": {"podName": "b"}},
        {"target": {"container": "b"}},
        {"target": {"podName": None, "selector": {"matchLabels": {"a": "b"}}, "maxPods": 2}},
    ],
    ids=["a count", "another resource", "another pod", "another container", "many pods"],
)
async def test_what_is_wanted_can_be_edited(scene: Scene, change: dict[str, Any]) -> None:
    before = await scene.mount()
    after = await scene.call("PATCH", scene.mount_path("dm"), {"spec": change})
    assert after["metadata"]["generation"] == before["metadata"]["generation"] + 1


@pytest.mark.parametrize(
    "change",
    [{"schedulerName": "other"}, {"annotations": {"a": "c"}}, {"acceptEnvFile": True}, None],
)
async def test_a_reservation_that_stands_cannot_be_edited(scene: Scene, change: Any) -> None:
    await scene.mount(reservation={"schedulerName": "volcano", "annotations": {"a": "b"}})
    with pytest.raises(errors.Invalid, match=r"spec\.reservation cannot be changed: delete this"):
        await scene.call("PATCH", scene.mount_path("dm"), {"spec": {"reservation": change}})


@pytest.mark.parametrize(
    ("reservation", "message"),
    [
        ({"priorityClassName": "system-node-critical"}, "classes of the system are not for"),
        ({"annotations": {"devicemount.io/target-uid": "x"}}, "none of devicemount's own"),
        ({"annotations": {"a b": "x"}}, "a key of annotations is a name"),
        ({"annotations": {"a": "x" * 1025}}, "may not be more than 1024 bytes"),
        ({"annotations": {f"a{n}": "" for n in range(17)}}, "must have at most 16 items"),
        ({"schedulerName": "No"}, "spec.reservation.schedulerName"),
    ],
)
async def test_a_reservation_that_cannot_be_is_refused(
    scene: Scene, reservation: dict[str, Any], message: str
) -> None:
    assert message in await refusal(scene, {LOOP: 1}, reservation=reservation)


async def test_what_can_be_edited_is(scene: Scene) -> None:
    await scene.mount()
    change = {"spec": {"suspend": True, "unmount": {"whenBusy": "Wait"}}}
    edited = await scene.call("PATCH", scene.mount_path("dm"), change)
    assert edited["metadata"]["generation"] == 2


async def test_no_status_is_refused_and_none_is_written_twice(scene: Scene) -> None:
    """Each reason with the worst of texts, then the largest of mounts, one over the other."""
    worst = [Report(reason=r, message="\ud800\x00\u202e" * 3000, target=None) for r in Reason]
    mount = DeviceMount.model_validate(await scene.mount())
    for said in worst:
        mount = await written(scene, mount, said)
    devices = tuple(given.device("i" * 300) for _ in range(600))
    agent = given.agent(grants=(given.grant(devices=devices),), container="notebook")
    decided = chain.decide(given.mounted(mount=mount, agent=agent)).report
    assert decided is not None
    observation = given.mounted(mount=mount, agent=agent)
    status = report.render(observation, decided).status
    await scene.call("PATCH", scene.mount_path("dm") + "/status", {"status": status})


async def written(scene: Scene, mount: DeviceMount, said: Report) -> DeviceMount:
    """Write what a report says, and return the mount as it reads back: nothing is left to write."""
    status = report.render(given.observation(mount=mount), said).status
    path = scene.mount_path("dm") + "/status"
    after = DeviceMount.model_validate(await scene.call("PATCH", path, {"status": status}))
    again = report.render(given.observation(mount=after, wall=given.WALL + 60), said)
    assert again == report.Rendered(None, ())
    return after


async def test_the_shadow_pod_passes_pod_security_restricted(scene: Scene) -> None:
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await scene.call("PATCH", f"/api/v1/namespaces/{scene.namespace}", label)
    mount = DeviceMount.model_validate(await scene.mount())
    image = "localhost/devicemount-hold:dev"
    body = shadow_pod.build(
        mount, target=given.target(), ordinal=0, resources={LOOP: 1}, image=image
    )
    posted = await scene.call("POST", scene.pod_path(""), body)
    assert shadow_pod.is_ours(posted, mount=mount, image=image)


async def test_a_shadow_pod_above_its_target_is_refused(scene: Scene) -> None:
    """A default priority class that came after the target: 5 is what the target has."""
    mount = DeviceMount.model_validate(await scene.mount())
    lower = given.target(priority=5)
    body = shadow_pod.build(
        mount, target=lower, ordinal=0, resources={LOOP: 1}, image="localhost/hold:1"
    )
    with pytest.raises(errors.Forbidden, match="integer value of priority"):
        await scene.call("POST", scene.pod_path(""), body)
