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


@pytest.mark.parametrize("count", [0, "0", -1, "-1", "0.5", "500m", "01", "1048577", "9" * 30])
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


async def test_counts_are_stored_as_they_are_written(scene: Scene) -> None:
    for name, count in (("a", 1), ("b", "1"), ("c", 16384)):
        body = scene.mount_body(name)
        body["spec"]["resources"]["limits"] = {LOOP: count}
        stored = await scene.call("POST", scene.mount_path(""), body)
        assert stored["spec"] == body["spec"]
        assert stored["status"] == {"observedGeneration": -1}
        assert DeviceMount.model_validate(stored).spec.resources.limits == {LOOP: int(count)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": {"podName": "b"}}, "spec.target cannot be changed: delete this DeviceMount"),
        ({"target": {"container": "b"}}, "spec.target cannot be changed: delete this DeviceMount"),
        ({"resources": {"limits": {LOOP: 2}}}, "spec.resources cannot be changed: delete this"),
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
    body = shadow_pod.build(mount, target=given.target(), ordinal=0, image=image)
    posted = await scene.call("POST", scene.pod_path(""), body)
    assert shadow_pod.is_ours(posted, mount=mount, image=image)


async def test_a_shadow_pod_above_its_target_is_refused(scene: Scene) -> None:
    """A default priority class that came after the target: 5 is what the target has."""
    mount = DeviceMount.model_validate(await scene.mount())
    lower = given.target(priority=5)
    body = shadow_pod.build(mount, target=lower, ordinal=0, image="localhost/hold:1")
    with pytest.raises(errors.Forbidden, match="integer value of priority"):
        await scene.call("POST", scene.pod_path(""), body)
