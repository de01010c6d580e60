# SPDX-License-Identifier: Apache-2.0
"""Edits of a mount in use: what is asked of the agent, what is written, and how often."""

from typing import Any

import grpc

from component.operator.scene import LOOP, Scene
from devicemount_agent_api.v1 import agent_pb2
from devicemount_operator import shadow_pod

TRAIN = agent_pb2.Holder(pid=7, command="train", blocking=True)
EDIT = ["create pods", "patch devicemounts/status", "create events"]
SHRINK = ["delete pods", "patch devicemounts/status", "create events"]


async def edit(scene: Scene, **spec: Any) -> None:
    await scene.call("PATCH", scene.mount_path("dm"), {"spec": spec})


async def wants(scene: Scene, count: int) -> None:
    await edit(scene, resources={"limits": {LOOP: count}})


async def mounted(scene: Scene, *, devices: int) -> dict[str, Any]:
    """Wait until status says Ready of what is wanted now, with that many devices."""

    async def is_so() -> dict[str, Any] | None:
        mount = await scene.get_mount() or {}
        status = mount.get("status") or {}
        is_seen = status.get("observedGeneration") == mount["metadata"]["generation"]
        ready = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), {})
        rows = status.get("targets") or [{}]
        has = len(rows[0].get("devices") or ())
        return mount if is_seen and ready.get("status") == "True" and has == devices else None

    found: dict[str, Any] = await scene.eventually(is_so)
    return found


def ready_since(mount: dict[str, Any]) -> str:
    conditions = mount["status"]["conditions"]
    return next(c["lastTransitionTime"] for c in conditions if c["type"] == "Ready")


async def counts(scene: Scene) -> dict[str, dict[str, int]]:
    """Return what each shadow pod asked for, by its UID, the oldest first."""
    pods = sorted(await scene.shadows(), key=lambda pod: str(pod["metadata"]["name"]))
    return {pod["metadata"]["uid"]: dict(shadow_pod.counts_of(pod)) for pod in pods}


async def grown(scene: Scene, *, most: int = 3, **spec: Any) -> list[str]:
    """Mount one device, then so many in all; return the shadow pods' UIDs."""
    await scene.running_pod(containers=("main", "other"))
    body = scene.mount_body("dm", container="main")
    body["spec"].update(spec)
    await scene.call("POST", scene.mount_path(""), body)
    await mounted(scene, devices=1)
    await wants(scene, most)
    await mounted(scene, devices=2)
    return list(await counts(scene))


async def test_it_grows_and_shrinks_and_ready_is_true_throughout(scene: Scene) -> None:
    async with scene.operator():
        await scene.running_pod()
        await scene.mount()
        one = await mounted(scene, devices=1)
        await scene.eventually(lambda: scene.events("Mounted"))
        with scene.counted() as writes:
            await wants(scene, 3)
            three = await mounted(scene, devices=2)
            await scene.eventually(lambda: scene.events("DevicesAdded"))
        assert writes == EDIT
        asked = await counts(scene)
        assert list(asked.values()) == [{LOOP: 1}, {LOOP: 2}]
        assert [dict(s.resources) for s in scene.agent.applies[-1].shadow_pods] == [
            {LOOP: 1},
            {LOOP: 2},
        ]
        assert ready_since(three) == ready_since(one)
        assert three["status"]["targets"][0]["since"] == one["status"]["targets"][0]["since"]
        with scene.counted() as writes:
            await wants(scene, 1)
            again = await mounted(scene, devices=1)
            await scene.eventually(lambda: scene.events("DevicesRemoved"))
        assert writes == SHRINK
        assert [list(r.shadow_uids) for r in scene.agent.removes] == [[list(asked)[1]]]
        assert list(await counts(scene)) == list(asked)[:1]
        assert ready_since(again) == ready_since(one)
        assert again["status"]["targets"][0]["devices"] == one["status"]["targets"][0]["devices"]


async def is_given_back(scene: Scene) -> bool:
    return await scene.shadows() == []


async def test_how_long_it_took_is_told_of_the_first_grant_only(scene: Scene) -> None:
    async with scene.operator():
        await scene.running_pod()
        await scene.mount()
        one = await mounted(scene, devices=1)
        assert "timings" in one["status"]["targets"][0]
        await edit(scene, suspend=True)
        await scene.eventually(lambda: is_given_back(scene))
        await edit(scene, suspend=False)
        again = await mounted(scene, devices=1)
        assert "timings" not in again["status"]["targets"][0]


async def test_an_agent_that_misses_what_is_not_wanted_any_more_is_told_what_stands(
    scene: Scene,
) -> None:
    async with scene.operator():
        first = (await grown(scene))[0]
        await wants(scene, 1)
        before = await mounted(scene, devices=1)
        asked = len(scene.agent.applies)

        def miss(state: agent_pb2.MountState) -> None:
            state.incomplete = True

        scene.agent.change(miss)

        async def is_told() -> bool:
            return len(scene.agent.applies) > asked

        await scene.eventually(is_told)
        assert [s.uid for s in scene.agent.applies[-1].shadow_pods] == [first]
        assert (await mounted(scene, devices=1))["status"] == before["status"]


async def test_a_count_that_no_shadow_pod_makes_up_changes_nothing(scene: Scene) -> None:
    async with scene.operator():
        await scene.running_pod()
        await scene.mount(count=3)
        before = await mounted(scene, devices=1)
        await wants(scene, 2)
        stalled = await scene.becomes("ShrinkNotPossible")
        assert "one DeviceMount per device" in stalled["status"]["targets"][0]["message"]
        assert {c["type"]: c["status"] for c in stalled["status"]["conditions"]}[
            "Stalled"
        ] == "True"
        assert (
            stalled["status"]["targets"][0]["devices"] == before["status"]["targets"][0]["devices"]
        )
        await wants(scene, 3)
        await mounted(scene, devices=1)
        assert scene.agent.removes == []
        assert list((await counts(scene)).values()) == [{LOOP: 3}]


async def test_what_is_in_use_is_not_what_goes(scene: Scene) -> None:
    async with scene.operator():
        old, young = await grown(scene, most=2)
        scene.agent.holders, scene.agent.held = [TRAIN], frozenset({young})
        await wants(scene, 1)
        await mounted(scene, devices=1)
        assert list(await counts(scene)) == [young]
        assert [list(r.shadow_uids) for r in scene.agent.removes] == [[young], [old]]
        assert await scene.events("DeviceBusy") == []


async def test_a_holder_is_named_while_it_shrinks_and_an_edit_back_ends_it(scene: Scene) -> None:
    async with scene.operator():
        both = await grown(scene, most=2)
        scene.agent.holders = [TRAIN]
        await wants(scene, 1)
        busy = await scene.becomes("DeviceBusy")
        (row,) = busy["status"]["targets"]
        assert (row["holders"][0]["command"], len(row["devices"])) == ("train", 2)
        await wants(scene, 2)
        await mounted(scene, devices=2)
        assert list(await counts(scene)) == both


async def test_to_shrink_holders_are_ended_only_when_all_are_in_use(scene: Scene) -> None:
    async with scene.operator():
        _, young = await grown(scene, most=2, unmount={"whenBusy": "Terminate"})
        scene.agent.holders = [TRAIN]
        await wants(scene, 1)

        async def is_ending() -> bool:
            last = scene.agent.removes[-1] if scene.agent.removes else agent_pb2.RemoveRequest()
            return last.policy == agent_pb2.TERMINATE and list(last.shadow_uids) == [young]

        await scene.eventually(is_ending)
        assert {r.policy for r in scene.agent.removes[:2]} == {agent_pb2.WAIT}
        scene.agent.holders = []
        await mounted(scene, devices=1)


async def test_while_more_cannot_be_had_what_is_there_stays(scene: Scene) -> None:
    async with scene.operator():
        await scene.running_pod()
        await scene.mount()
        await mounted(scene, devices=1)
        first = list(await counts(scene))
        scene.agent.gate.clear()
        await wants(scene, 3)
        new = await scene.eventually(lambda: second(scene, first))
        await scene.complain(new)
        short = await scene.becomes("Insufficient")
        (row,) = short["status"]["targets"]
        assert (len(row["devices"]), len(row["shadowPods"])) == (1, 2)
        await wants(scene, 1)
        await mounted(scene, devices=1)
        assert list(await counts(scene)) == first


async def second(scene: Scene, first: list[str]) -> dict[str, Any] | None:
    pods = await scene.shadows()
    return next((pod for pod in pods if pod["metadata"]["uid"] not in first), None)


async def test_what_an_agent_refuses_is_given_up_alone(scene: Scene) -> None:
    async with scene.operator():
        await scene.running_pod()
        await scene.mount()
        await mounted(scene, devices=1)
        (first,) = await counts(scene)
        scene.agent.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "Insufficient", "1 of 2 given")
        await wants(scene, 3)
        short = await scene.becomes("Insufficient")
        assert len(short["status"]["targets"][0]["devices"]) == 1
        scene.agent.refusal = None
        await mounted(scene, devices=2)
        assert first not in {uid for r in scene.agent.removes for uid in r.shadow_uids}
        assert {r.policy for r in scene.agent.removes} == {agent_pb2.LOST}


async def test_another_container_gets_what_the_former_gave_back(scene: Scene) -> None:
    async with scene.operator():
        await scene.running_pod(containers=("main", "other"))
        await scene.mount(container="main")
        await mounted(scene, devices=1)
        scene.agent.holders = [TRAIN]
        await edit(scene, target={"container": "other"})
        busy = await scene.becomes("DeviceBusy")
        assert busy["status"]["targets"][0]["containerName"] == "main"
        scene.agent.holders = []
        moved = await mounted(scene, devices=1)
        assert moved["status"]["targets"][0]["containerName"] == "other"
        assert [a.target.container for a in scene.agent.applies] == ["main", "other"]


async def test_a_container_that_does_not_exist_moves_nothing(scene: Scene) -> None:
    async with scene.operator():
        await scene.running_pod(containers=("main", "other"))
        await scene.mount(container="main")
        await mounted(scene, devices=1)
        await edit(scene, target={"container": "oter"})
        wrong = await scene.becomes("ContainerNotFound")
        assert len(wrong["status"]["targets"][0]["devices"]) == 1
        await edit(scene, target={"container": "main"})
        await mounted(scene, devices=1)
        assert scene.agent.removes == []


async def test_another_resource_gives_the_former_back_first(scene: Scene) -> None:
    async with scene.operator():
        await scene.running_pod()
        await scene.mount()
        await mounted(scene, devices=1)
        former = list(await counts(scene))
        await edit(scene, resources={"limits": {LOOP: None, "a.io/b": 1}})
        await mounted(scene, devices=1)
        assert [list(r.shadow_uids) for r in scene.agent.removes] == [former]
        assert list((await counts(scene)).values()) == [{"a.io/b": 1}]
