# SPDX-License-Identifier: Apache-2.0
"""Deletion ends wherever release is provable, and never before: without agents, nodes, operators,
namespaces, and among what backups and garbage collection leave."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from component.operator.scene import (
    FINALIZER,
    HOLD_IMAGE,
    LOOP,
    NODE,
    Scene,
)
from devicemount_agent_api.v1 import agent_pb2
from devicemount_operator import errors, shadow_pod
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.decide import proof
from unit.operator import given

RELEASE = {"metadata": {"annotations": {proof.RELEASE: "rack 7 burnt down"}}}
NODES = "/api/v1/nodes"
TRAIN = agent_pb2.Holder(pid=7, command="train", blocking=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent counts as silent the second time."""
    monkeypatch.setattr(proof, "SILENT_TIMES", 2)
    monkeypatch.setattr(proof, "SILENT_S", 0.0)


@pytest.fixture
async def abandoned(scene: Scene, impatient: None) -> AsyncIterator[Scene]:
    """A mount that is being deleted and whose node's agent is gone; its operator runs."""
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        await scene.no_agent_pod()
        await scene.unmount()
        await scene.becomes("AgentUnavailable")
        yield scene
    await scene.node(allocatable=4)


async def test_a_node_that_was_deleted_is_proof_when_its_agent_stays_silent(
    abandoned: Scene,
) -> None:
    await abandoned.delete(f"{NODES}/{NODE}")
    await abandoned.gone(abandoned.mount_path("dm"))
    assert await abandoned.shadows() == []
    assert await abandoned.events(proof.RELEASED) == []


async def test_an_agent_whose_pod_went_with_its_node_is_asked_where_it_was_last(
    scene: Scene, impatient: None
) -> None:
    """The node lives: only its object and its pods' are gone from the API server."""
    scene.agent.node = agent_pb2.NodeState(boot_id="first")
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        await scene.eventually(lambda: streams(scene))
        scene.agent.holders = [TRAIN]
        await scene.delete(f"{NODES}/{NODE}")
        await scene.no_agent_pod()
        await scene.unmount()
        await scene.becomes("DeviceBusy")
        scene.agent.holders = []
        await scene.gone(scene.mount_path("dm"), within_s=7)
        assert await scene.shadows() == []
    await scene.node(allocatable=4)


async def streams(scene: Scene) -> bool:
    """Tell whether the operator has asked who its node is, before it listens to it."""
    return bool(scene.agent.listeners)


async def test_another_machine_at_that_address_does_not_answer_for_it(
    scene: Scene, impatient: None
) -> None:
    scene.agent.node = agent_pb2.NodeState(boot_id="first")
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        await scene.eventually(lambda: streams(scene))
        scene.agent.node = agent_pb2.NodeState(boot_id="second")
        await scene.no_agent_pod()
        await scene.unmount()
        await scene.becomes("AgentUnavailable")
        assert scene.agent.removes == []
        await scene.delete(f"{NODES}/{NODE}")
        await scene.gone(scene.mount_path("dm"))
    await scene.node(allocatable=4)


async def test_the_pods_own_last_object_is_proof_on_a_node_that_lives(abandoned: Scene) -> None:
    over = {"exitCode": 0, "reason": "Completed"}
    pod = await abandoned.get(abandoned.pod_path("target"))
    assert pod is not None
    (running,) = pod["status"]["containerStatuses"]
    ended = {"containerID": running["containerID"], **over}
    statuses = [{**running, "ready": False, "state": {"terminated": ended}}]
    await abandoned.set_status("target", {"phase": "Succeeded", "containerStatuses": statuses})
    await abandoned.gone(abandoned.mount_path("dm"))
    assert await abandoned.shadows() == []


async def test_an_administrators_word_is_taken_and_told_with_the_devices(
    abandoned: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(await abandoned.shadows()) == 1, "the node lives: nothing is proved"
    await abandoned.call("PATCH", abandoned.mount_path("dm"), RELEASE)
    await abandoned.gone(abandoned.mount_path("dm"))
    (event,) = await abandoned.eventually(lambda: abandoned.events(proof.RELEASED))
    assert event["type"] == "Warning"
    assert f"{LOOP} loop0 on node {NODE} is given back" in event["message"]
    assert event["message"].endswith("rack 7 burnt down")
    said = [r.getMessage() for r in caplog.records if "without its agent" in r.getMessage()]
    assert any(f"devices='{LOOP} loop0' proof=administrator" in line for line in said)
    assert await abandoned.shadows() == []


async def test_an_agent_that_answers_is_asked_whatever_an_administrator_says(
    scene: Scene, impatient: None
) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        scene.agent.holders = [TRAIN]
        await scene.call("PATCH", scene.mount_path("dm"), RELEASE)
        await scene.delete(f"{NODES}/{NODE}")
        await scene.unmount()
        await scene.becomes("DeviceBusy")
        await scene.eventually(lambda: has_asked(scene, times=3))
        assert len(await scene.shadows()) == 1
        scene.agent.holders = []
        await scene.gone(scene.mount_path("dm"), within_s=7)
        assert await scene.events(proof.RELEASED) == []
    await scene.node(allocatable=4)


async def has_asked(scene: Scene, *, times: int) -> bool:
    return len(scene.agent.removes) >= times


async def test_garbage_collection_does_not_pull_the_fence_down(scene: Scene) -> None:
    """What it does to a shadow pod with two owners, done by hand: it takes one of them off."""
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        scene.agent.holders = [TRAIN]
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        await scene.call("DELETE", scene.mount_path("dm"), options)
        (shadow,) = await scene.shadows()
        owners = [o for o in shadow["metadata"]["ownerReferences"] if o["kind"] == "Pod"]
        name = shadow["metadata"]["name"]
        change = {"metadata": {"ownerReferences": owners}}
        await scene.call("PATCH", scene.pod_path(name), change)
        await scene.becomes("DeviceBusy")
        collected = {"metadata": {"finalizers": [FINALIZER]}}
        await scene.call("PATCH", scene.mount_path("dm"), collected)
        asked = len(scene.agent.removes)
        await scene.eventually(lambda: has_asked(scene, times=asked + 1))
        assert [pod["metadata"]["name"] for pod in await scene.shadows()] == [name]
        scene.agent.holders = []
        await scene.gone(scene.mount_path("dm"), within_s=7)
        assert await scene.shadows() == []


async def test_a_mount_and_its_pod_that_went_while_no_operator_ran(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
    scene.agent.say_of_all(agent_pb2.TARGET_ENDED)
    await scene.unmount()
    await scene.delete(scene.pod_path("target"), grace_s=0)
    async with scene.operator():
        await scene.gone(scene.mount_path("dm"))
    assert await scene.shadows() == []
    assert scene.agent.states == {}


async def test_in_a_namespace_that_is_being_deleted_nothing_has_to_be_created(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        await scene.delete(f"/api/v1/namespaces/{scene.namespace}")
        with pytest.raises(errors.Forbidden):
            await scene.running_pod("late")
        with scene.counted() as writes:
            await scene.unmount()
            await scene.gone(scene.mount_path("dm"))
        assert await scene.shadows() == []
    assert [write for write in writes if write.startswith("create")] in ([], ["create events"])
    assert not [r for r in caplog.records if "write an Event" in r.getMessage()]


FORMER = "0badf00d-0000-4000-8000-000000000000"


def restored_shadow(scene: Scene) -> dict[str, Any]:
    """A shadow pod as a backup brings it back: of a mount that has another UID by now."""
    meta = {"name": "dm", "namespace": scene.namespace, "uid": FORMER}
    spec = {"target": {"podName": "target"}, "resources": {"limits": {LOOP: 1}}}
    mount = DeviceMount.model_validate({"metadata": meta, "spec": spec})
    pod = shadow_pod.build(
        mount, target=given.target(), ordinal=0, image=HOLD_IMAGE, resources={LOOP: 1}
    )
    del pod["metadata"]["ownerReferences"]
    return pod


async def test_what_a_backup_brings_back_adopts_nothing_and_is_adopted_by_nobody(
    scene: Scene,
) -> None:
    await scene.running_pod()
    await scene.call("POST", scene.pod_path(""), restored_shadow(scene))
    body = scene.mount_body("dm")
    body["spec"]["lifetime"] = {"expireAfter": "1h", "deleteWithTarget": True}
    body["metadata"]["finalizers"] = [FINALIZER]
    await scene.call("POST", scene.mount_path(""), body)
    long_ago = "2020-01-01T00:00:00Z"
    row = {"podUID": given.TARGET_UID, "nodeName": NODE, "shadowPods": ["dm-0badf00d-22222222-0"]}
    counted = {**body["spec"]["lifetime"], "since": long_ago, "targetGone": long_ago}
    counted["target"] = body["spec"]["target"]["podName"]
    status = {"observedGeneration": 1, "targets": [row], "lifetime": counted}
    await scene.call("PATCH", scene.mount_path("dm") + "/status", {"status": status})
    async with scene.operator():
        mount = await scene.becomes("Mounted")
        uid = mount["metadata"]["uid"]

        async def only_its_own() -> bool:
            labels = [p["metadata"]["labels"][shadow_pod.LABEL] for p in await scene.shadows()]
            return labels == [uid]

        await scene.eventually(only_its_own)
        assert mount["status"]["lifetime"]["since"] > long_ago
        assert {request.key.mount_uid for request in scene.agent.applies} == {uid}
        await scene.unmount()
        await scene.gone(scene.mount_path("dm"))
    assert await scene.shadows() == []
