# SPDX-License-Identifier: Apache-2.0
"""Many target pods of one DeviceMount, as pods come and go, and edits of whom it means."""

from typing import Any

from component.operator.scene import LOOP, WRITES, Scene, pod_body, running
from devicemount_agent_api.v1 import agent_pb2
from devicemount_operator.transport import JsonObject

# Shadow pods have the label and one of the values too, and are never targets.
SELECTOR = {
    "matchExpressions": [
        {"key": "app.kubernetes.io/component", "operator": "In", "values": ["web", "shadow"]}
    ]
}
WEB = {"app.kubernetes.io/component": "web"}
HOLDER = agent_pb2.Holder(pid=7, command="train", blocking=True)


async def web_pods(scene: Scene, *names: str) -> None:
    for name in names:
        await scene.running_pod(name, labels=WEB)


async def select(scene: Scene, **target: Any) -> JsonObject:
    body = scene.mount_body("dm")
    body["spec"]["target"] = {"selector": SELECTOR, **target}
    return await scene.call("POST", scene.mount_path(""), body)


async def edit_target(scene: Scene, **target: Any) -> None:
    whole = {"podName": None, "selector": None, "maxPods": None} | target
    await scene.call("PATCH", scene.mount_path("dm"), {"spec": {"target": whole}})


async def settled(scene: Scene, ready: str, *names: str) -> JsonObject:
    """Wait until status counts so, and speaks of these pods and no others."""

    async def is_so() -> JsonObject | None:
        mount = await scene.get_mount() or {}
        status = mount.get("status") or {}
        rows = sorted(row["podName"] for row in status.get("targets") or ())
        fresh = status.get("observedGeneration") == mount["metadata"]["generation"]
        so = fresh and status.get("ready") == ready and rows == sorted(names)
        return mount if so else None

    try:
        found: JsonObject = await scene.eventually(is_so)
    except AssertionError as error:
        raise AssertionError(f"not {ready} of {names}: {await scene.get_mount()}") from error
    return found


async def reserved_for(scene: Scene) -> dict[str, str]:
    """Return the shadow pods' UIDs by the names of the pods that they were made for."""
    return {
        owner["name"]: shadow["metadata"]["uid"]
        for shadow in await scene.shadows()
        for owner in shadow["metadata"]["ownerReferences"]
        if owner["kind"] == "Pod"
    }


async def test_every_matching_pod_gets_devices_of_its_own_told_of_at_once(scene: Scene) -> None:
    await web_pods(scene, "a", "b", "c")
    await scene.running_pod("other", labels={"app.kubernetes.io/component": "db"})
    async with scene.operator():
        with scene.counted() as writes:
            await select(scene)
            mount = await settled(scene, "3/3", "a", "b", "c")
            await scene.eventually(lambda: scene.events("Mounted"))
        assert sorted(writes) == [
            "create events",
            *["create pods"] * 3,
            "patch devicemounts/status",
            "update devicemounts",
        ]
        rows = mount["status"]["targets"]
        assert {row["reason"] for row in rows} == {"Mounted"}
        assert len({row["shadowPods"][0] for row in rows}) == 3
        assert {request.target.pod_name for request in scene.agent.applies} == {"a", "b", "c"}
        with scene.counted() as writes:
            await scene.unmount()
            await scene.gone(scene.mount_path("dm"))
            await scene.eventually(lambda: scene.events("Unmounted"))  # by then it is in the log
        assert writes.count("delete pods") == 3
        assert writes.count("update devicemounts") == 1
        assert await scene.shadows() == []
        assert scene.agent.states == {}


async def test_a_restarted_operator_reads_who_there_is_and_nothing_else(scene: Scene) -> None:
    await web_pods(scene, "a", "b")
    async with scene.operator():
        await select(scene)
        await settled(scene, "2/2", "a", "b")
    applied = len(scene.agent.applies)
    with scene.counted((*WRITES, "get", "list")) as requests:
        async with scene.operator():
            await scene.eventually(scene.agent.listed(times=8))
    assert requests == ["list pods"]
    assert len(scene.agent.applies) == applied


async def test_pods_come_and_go(scene: Scene) -> None:
    """Each that goes does so in its own way."""
    async with scene.operator():
        await select(scene)
        mount = await scene.becomes("TargetNotFound")
        assert mount["status"]["ready"] == "0/0"
        assert "matches spec.target.selector" in str(mount["status"]["conditions"])
        await web_pods(scene, "a", "b", "c", "d")
        await settled(scene, "4/4", "a", "b", "c", "d")
        before = await reserved_for(scene)
        relabelled = {"metadata": {"labels": {"app.kubernetes.io/component": "quarantine"}}}
        await scene.call("PATCH", scene.pod_path("a"), relabelled)
        await settled(scene, "3/3", "b", "c", "d")
        await scene.set_status("b", {"phase": "Failed"})
        await settled(scene, "2/2", "c", "d")
        await scene.delete(scene.pod_path("c"), grace_s=0)
        await settled(scene, "1/1", "d")
        await web_pods(scene, "c")  # as a StatefulSet does it
        await settled(scene, "2/2", "c", "d")
        after = await reserved_for(scene)
        assert after.keys() == {"c", "d"}
        assert after["d"] == before["d"]
        assert after["c"] != before["c"]
        assert {state.key.pod_uid for state in scene.agent.states.values()} == {
            row["podUID"] for row in (await scene.get_mount() or {})["status"]["targets"]
        }


async def test_no_more_than_maxpods_get_devices_and_those_that_have_them_keep_them(
    scene: Scene,
) -> None:
    await web_pods(scene, "b")
    async with scene.operator():
        await select(scene, maxPods=2)
        await settled(scene, "1/1", "b")
        await web_pods(scene, "c")
        await settled(scene, "2/2", "b", "c")
        await web_pods(scene, "a")
        await scene.eventually(lambda: _says(scene, "Left out are 1 more pods that match"))
        await settled(scene, "2/2", "b", "c")
        await scene.delete(scene.pod_path("b"), grace_s=0)
        await settled(scene, "2/2", "a", "c")
        before = await reserved_for(scene)
        await edit_target(scene, selector=SELECTOR, maxPods=1)
        await scene.eventually(lambda: _counts(scene, "1/1"))
        after = await scene.eventually(lambda: reserved_for(scene))
        assert len(after) == 1
        assert after.items() <= before.items()


async def _says(scene: Scene, text: str) -> bool:
    return text in str((await scene.get_mount() or {})["status"])


async def _counts(scene: Scene, ready: str) -> bool:
    mount = await scene.get_mount() or {}
    return bool(mount["status"].get("ready") == ready)


async def test_while_one_pod_is_busy_all_others_are_given_back(scene: Scene) -> None:
    await web_pods(scene, "a", "b", "c")
    async with scene.operator():
        await select(scene)
        await settled(scene, "3/3", "a", "b", "c")
        scene.agent.holders = [HOLDER]
        scene.agent.held = frozenset({(await reserved_for(scene))["b"]})
        await scene.call("PATCH", scene.mount_path("dm"), {"spec": {"suspend": True}})
        mount = await scene.becomes("DeviceBusy")
        assert [row["podName"] for row in mount["status"]["targets"]] == ["b"]
        assert (await reserved_for(scene)).keys() == {"b"}
        await scene.unmount()
        await scene.becomes("DeviceBusy")
        assert (await reserved_for(scene)).keys() == {"b"}
        scene.agent.holders = []
        scene.agent.say_of_all(agent_pb2.GRANTED)
        await scene.gone(scene.mount_path("dm"))
        assert await scene.shadows() == []


async def test_from_a_name_to_a_selector_and_back_nothing_blinks(scene: Scene) -> None:
    await web_pods(scene, "target", "b")
    async with scene.operator():
        await scene.mount()
        await settled(scene, "1/1", "target")
        before = await reserved_for(scene)
        await edit_target(scene, selector=SELECTOR)
        await settled(scene, "2/2", "b", "target")
        assert (await reserved_for(scene))["target"] == before["target"]
        await edit_target(scene, podName="target")
        await settled(scene, "1/1", "target")
        await scene.eventually(lambda: _is(scene, before))
        mine = [
            request for request in scene.agent.removes if before["target"] in request.shadow_uids
        ]
        assert mine == []


async def _is(scene: Scene, wanted: dict[str, str]) -> bool:
    return await reserved_for(scene) == wanted


async def test_another_pod_gets_its_devices_when_the_former_has_given_back(scene: Scene) -> None:
    await web_pods(scene, "target", "b")
    async with scene.operator():
        await scene.mount()
        await settled(scene, "1/1", "target")
        before = await reserved_for(scene)
        scene.agent.holders = [HOLDER]
        await edit_target(scene, podName="b")
        mount = await scene.becomes("DeviceBusy")
        assert "Pod target: 1 process has a device open: 7 train" in str(mount["status"])
        assert await reserved_for(scene) == before
        await edit_target(scene, podName="target")
        scene.agent.say_of_all(agent_pb2.GRANTED)
        await settled(scene, "1/1", "target")
        await scene.becomes("Mounted")
        assert await reserved_for(scene) == before
        scene.agent.holders = []
        await edit_target(scene, podName="b")
        await settled(scene, "1/1", "b")
        assert (await reserved_for(scene)).keys() == {"b"}


async def test_one_container_of_many_pods_is_chosen_in_each(scene: Scene) -> None:
    await scene.running_pod("one", ("main",), labels=WEB)
    await scene.running_pod("two", ("main", "more"), labels=WEB)
    async with scene.operator():
        await select(scene)
        mount = await settled(scene, "1/2", "one", "two")
        reasons = {row["podName"]: row["reason"] for row in mount["status"]["targets"]}
        assert reasons == {"one": "Mounted", "two": "ContainerAmbiguous"}
        await edit_target(scene, selector=SELECTOR, container="main")
        await settled(scene, "2/2", "one", "two")
        assert {request.target.container for request in scene.agent.applies} == {"main"}


async def test_a_node_without_an_agent_holds_up_its_own_pods_only(scene: Scene) -> None:
    labels = {"devicemount.io/enabled": "true"}
    far = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "far", "labels": labels}}
    await scene.ensure("/api/v1/nodes", far)
    try:
        await web_pods(scene, "near")
        body = pod_body("away", scene.namespace, ("main",), labels=WEB)
        body["spec"]["nodeName"] = "far"
        await scene.call("POST", scene.pod_path(""), body)
        await scene.set_status("away", running(("main",)))
        async with scene.operator():
            await select(scene)
            mount = await settled(scene, "1/2", "away", "near")
            reasons = {row["podName"]: row["reason"] for row in mount["status"]["targets"]}
            assert reasons == {"near": "Mounted", "away": "AgentUnavailable"}
            assert "1 of 2 pods are ready. Pod away: no node agent" in str(mount["status"])
            await scene.unmount()
            await scene.gone(scene.mount_path("dm"))
    finally:
        await scene.delete("/api/v1/nodes/far")


async def test_a_column_shows_the_name_or_the_selector(scene: Scene) -> None:
    """A column's path is one for both; the server makes the table."""
    await scene.mount("by-name")
    await select(scene)
    path = f"{scene.mount_path('')}?includeObject=None"
    accept = "application/json;as=Table;g=meta.k8s.io;v=v1"
    table = await scene.transport.call("GET", path, timeout_s=10, accept=accept)
    names = [column["name"] for column in table["columnDefinitions"]]
    shown = {row["cells"][0]: row["cells"][names.index("Target")] for row in table["rows"]}
    assert shown["by-name"] == "target"
    assert '"app.kubernetes.io/component"' in shown["dm"]
    assert LOOP not in str(shown)
