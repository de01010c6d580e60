# SPDX-License-Identifier: Apache-2.0
"""What others do to a mount while the operator works on it, and what the API server refuses."""

import asyncio
import logging

import grpc
import pytest

from component.operator.scene import FINALIZER, LOOP, NODE, Scene
from devicemount_agent_api.v1 import agent_pb2
from devicemount_operator import errors, shadow_pod


async def test_kopf_leaves_our_finalizer_alone_over_ten_events_and_a_deletion(scene: Scene) -> None:
    others = "example.com/backup"
    await scene.running_pod()
    async with scene.operator():
        await scene.mount(finalizers=(FINALIZER, others))
        await scene.becomes("Mounted")
        for count in range(10):
            body = {"metadata": {"annotations": {"touched": str(count)}}}
            await scene.call("PATCH", scene.mount_path("dm"), body)
        seen = await scene.get_mount()
        assert seen is not None
        assert seen["metadata"]["finalizers"] == [FINALIZER, others]
        scene.agent.holders = [agent_pb2.Holder(pid=7, command="train", blocking=True)]
        await scene.unmount()
        busy = await scene.becomes("DeviceBusy")
        assert busy["metadata"]["finalizers"] == [FINALIZER, others]
        scene.agent.holders = []
        scene.agent.say_of_all(agent_pb2.GRANTED)

        async def only_others() -> bool:
            mount = await scene.get_mount()
            return mount is not None and mount["metadata"]["finalizers"] == [others]

        await scene.eventually(only_others)


async def test_a_mount_deleted_before_its_finalizer_was_on_it_is_given_back(scene: Scene) -> None:
    target = await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
    await scene.call("PATCH", scene.mount_path("dm"), {"metadata": {"finalizers": None}})
    await scene.unmount()
    await scene.gone(scene.mount_path("dm"))
    async with scene.operator():
        await scene.gone(scene.pod_path((await scene.shadow())["metadata"]["name"]))
        told = await scene.eventually(lambda: scene.events("Unmounted"))
    assert told[0]["involvedObject"]["uid"] == target["metadata"]["uid"]
    assert scene.agent.states == {}
    assert scene.agent.removes[-1].policy == agent_pb2.WAIT


async def test_the_same_while_the_operator_watches(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        await scene.call("PATCH", scene.mount_path("dm"), {"metadata": {"finalizers": None}})
        await scene.unmount()

        async def nothing_left() -> bool:
            return await scene.get_mount() is None and await scene.shadows() == []

        await scene.eventually(nothing_left)
    assert scene.agent.states == {}


async def test_an_object_of_the_same_name_is_not_taken_for_the_old_one(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.operator():
        old = await scene.mount()
        await scene.becomes("Mounted")
    await scene.call("PATCH", scene.mount_path("dm"), {"metadata": {"finalizers": None}})
    await scene.unmount()
    await scene.gone(scene.mount_path("dm"))
    await scene.mount()
    async with scene.operator():
        await scene.becomes("Mounted")

        async def only_the_new_ones() -> bool:
            labels = {pod["metadata"]["labels"][shadow_pod.LABEL] for pod in await scene.shadows()}
            return len(labels) == 1 and old["metadata"]["uid"] not in labels

        await scene.eventually(only_the_new_ones)


async def test_a_pod_that_has_the_name_is_neither_adopted_nor_touched(scene: Scene) -> None:
    target = await scene.running_pod()
    mount = await scene.mount()
    name = f"dm-{mount['metadata']['uid'][:8]}-{target['metadata']['uid'][:8]}-0"
    labels = {shadow_pod.LABEL: mount["metadata"]["uid"]}
    from component.operator.scene import pod_body

    foreign = await scene.call(
        "POST", scene.pod_path(""), pod_body(name, scene.namespace, ("hold",), labels=labels)
    )
    async with scene.operator():
        await scene.becomes("Mounted")
        assert scene.agent.applies[-1].shadow_pods[0].name == name.removesuffix("0") + "1"
        await scene.unmount()
        await scene.gone(scene.mount_path("dm"))
    left = await scene.shadows()
    assert [pod["metadata"]["uid"] for pod in left] == [foreign["metadata"]["uid"]]


async def test_the_finalizer_is_added_to_an_object_that_others_write(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from devicemount_operator.cluster import Cluster

    replace_mount = Cluster.replace_mount
    conflicts: list[object] = []

    async def after_another_writer(self: Cluster, key: object, body: object) -> object:
        if not conflicts:
            conflicts.append(key)
            annotations = {"metadata": {"annotations": {"written": "meanwhile"}}}
            await scene.call("PATCH", scene.mount_path("dm"), annotations)
        return await replace_mount(self, key, body)  # type: ignore[arg-type]

    monkeypatch.setattr(Cluster, "replace_mount", after_another_writer)
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        mount = await scene.becomes("Mounted")

        async def has_both() -> bool:
            seen = await scene.get_mount()
            return seen is not None and seen["metadata"].get("finalizers") == [FINALIZER]

        await scene.eventually(has_both)
    assert mount["metadata"]["annotations"]["written"] == "meanwhile"
    assert len(conflicts) == 1


async def test_a_quota_that_is_used_up_is_said_and_waited_for(scene: Scene) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {f"requests.{LOOP}": "0"}},
    }
    path = f"/api/v1/namespaces/{scene.namespace}/resourcequotas"
    await scene.running_pod()
    await scene.call("POST", path, quota)
    status = {"status": {"hard": {f"requests.{LOOP}": "0"}, "used": {f"requests.{LOOP}": "0"}}}
    await scene.call("PATCH", f"{path}/none/status", status)
    async with scene.operator():
        await scene.mount()
        mount = await scene.becomes("QuotaExceeded")
        assert await scene.shadows() == []
        assert "exceeded quota" in str(mount["status"]["conditions"])
        await scene.delete(f"{path}/none")
        await scene.becomes("Mounted")


async def test_a_shadow_pod_that_is_deleted_is_told_as_lost_and_made_again(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        lost = await scene.shadow()
        await scene.schedule(lost)
        await scene.delete(scene.pod_path(lost["metadata"]["name"]))

        async def told() -> bool:
            return any(r.policy == agent_pb2.LOST for r in scene.agent.removes)

        await scene.eventually(told)
        await scene.becomes("ReservationLost")
        assert list(scene.agent.removes[-1].shadow_uids) == [lost["metadata"]["uid"]]
        await scene.delete(scene.pod_path(lost["metadata"]["name"]), grace_s=0)
        await scene.becomes("Mounted")
    assert (await scene.shadow())["metadata"]["uid"] != lost["metadata"]["uid"]


async def test_a_shadow_pod_that_vanishes_while_the_watch_is_cut_is_noticed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from devicemount_operator.transport import Transport

    watch, cut = Transport.watch, asyncio.Event()

    async def cuttable(self: Transport, path: str, **given: object) -> object:
        if cut.is_set():
            raise errors.Unreachable("cut by the test")
        async for event in watch(self, path, **given):  # type: ignore[arg-type]
            if cut.is_set():
                raise errors.Unreachable("cut by the test")
            yield event

    monkeypatch.setattr(Transport, "watch", cuttable)
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        lost = await scene.shadow()
        cut.set()
        await scene.delete(scene.pod_path(lost["metadata"]["name"]), grace_s=0)

        async def told() -> bool:
            return any(r.policy == agent_pb2.LOST for r in scene.agent.removes)

        await scene.eventually(told)
        cut.clear()
        await scene.becomes("Mounted")


async def test_a_container_that_restarts_is_grafted_again(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        applied = len(scene.agent.applies)
        scene.agent.say_of_all(agent_pb2.TARGET_ENDED)

        async def applied_again() -> bool:
            return len(scene.agent.applies) > applied

        await scene.eventually(applied_again)
        await scene.becomes("Mounted")
    assert len(await scene.shadows()) == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "UnsupportedRuntime"),
        (grpc.StatusCode.ALREADY_EXISTS, "PathConflict"),
        (grpc.StatusCode.UNAVAILABLE, "AgentUnavailable"),
    ],
)
async def test_what_the_agent_refuses_is_the_reason(
    scene: Scene, code: grpc.StatusCode, reason: str
) -> None:
    named = "" if reason == "AgentUnavailable" else reason
    scene.agent.refusal = (code, named, "the agent's own words")
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        mount = await scene.becomes(reason)
    assert "the agent's own words" in str(mount["status"]["conditions"])


async def test_a_node_without_an_agent_is_said_and_waited_for(scene: Scene) -> None:
    await scene.no_agent_pod()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        mount = await scene.becomes("AgentUnavailable")
        assert NODE in str(mount["status"]["conditions"])
        await scene.agent_pod()
        await scene.becomes("Mounted")


async def test_wrong_input_has_its_reason_and_no_traceback(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.running_pod("two", ("first", "second"))
    async with scene.operator():
        await scene.mount("a", pod="nobody")
        await scene.mount("b", pod="two")
        await scene.mount("c", pod="two", container="third")
        await scene.becomes("TargetNotFound", "a")
        ambiguous = await scene.becomes("ContainerAmbiguous", "b")
        await scene.becomes("ContainerNotFound", "c")
    assert "first, second" in str(ambiguous["status"]["conditions"])
    assert await scene.shadows() == []
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
