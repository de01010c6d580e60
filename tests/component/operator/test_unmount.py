# SPDX-License-Identifier: Apache-2.0
"""What is given back while processes hold it: waited for, or ended, as spec.unmount says now."""

from typing import Any

from component.operator.scene import Scene
from devicemount_agent_api.v1 import agent_pb2
from devicemount_operator.agents import REMOVES_AT_ONCE

TRAIN = agent_pb2.Holder(pid=7, command="train", blocking=True, note="TERM was sent")


def policies(scene: Scene) -> list[tuple[int, int, bool]]:
    return [(r.policy, r.grace_seconds, r.include_main_process) for r in scene.agent.removes]


async def mounted(scene: Scene, **unmount: Any) -> None:
    await scene.running_pod()
    body = scene.mount_body("dm")
    body["spec"]["unmount"] = unmount
    await scene.call("POST", scene.mount_path(""), body)
    await scene.becomes("Mounted")


def conditions(mount: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in mount["status"]["conditions"]}


async def test_holders_are_ended_as_the_mount_says_and_status_says_it(scene: Scene) -> None:
    async with scene.operator():
        await mounted(scene, whenBusy="Terminate", gracePeriodSeconds=5, includeMainProcess=True)
        scene.agent.holders = [TRAIN]
        await scene.unmount()
        busy = await scene.becomes("DeviceBusy")
        assert policies(scene)[0] == (agent_pb2.TERMINATE, 5, True)
        assert "access is revoked, and 1 process has" in str(busy["status"]["conditions"])
        assert (conditions(busy)["Reserved"], conditions(busy)["Grafted"]) == ("True", "False")
        (holder,) = busy["status"]["targets"][0]["holders"]
        assert holder["note"] == "TERM was sent"
        assert len(await scene.shadows()) == 1
        scene.agent.holders = []
        await scene.gone(scene.mount_path("dm"), within_s=7)
        await scene.eventually(lambda: scene.events("Unmounted"))
    assert await scene.shadows() == []


async def test_a_deletion_that_waits_goes_on_when_the_mount_is_edited(scene: Scene) -> None:
    async with scene.operator():
        await mounted(scene)
        scene.agent.holders = [TRAIN]
        await scene.unmount()
        busy = await scene.becomes("DeviceBusy")
        assert conditions(busy)["Grafted"] == "True"
        assert {policy for policy, _, _ in policies(scene)} == {agent_pb2.WAIT}
        change = {"spec": {"unmount": {"whenBusy": "Terminate"}}}
        await scene.call("PATCH", scene.mount_path("dm"), change)

        async def terminates() -> bool:
            return policies(scene)[-1] == (agent_pb2.TERMINATE, 30, False)

        await scene.eventually(terminates, within_s=2)
        scene.agent.holders = []
        await scene.gone(scene.mount_path("dm"), within_s=7)


async def test_suspending_ends_holders_too_and_a_change_of_mind_grafts_anew(scene: Scene) -> None:
    async with scene.operator():
        await mounted(scene, whenBusy="Terminate")
        applied = len(scene.agent.applies)
        scene.agent.holders = [TRAIN]
        await scene.call("PATCH", scene.mount_path("dm"), {"spec": {"suspend": True}})
        await scene.becomes("DeviceBusy")
        scene.agent.holders = []
        await scene.call("PATCH", scene.mount_path("dm"), {"spec": {"suspend": False}})
        await scene.becomes("Mounted")
        assert len(scene.agent.applies) > applied


async def test_what_another_pod_has_of_a_target_that_is_gone_is_told_once(scene: Scene) -> None:
    def stir(state: agent_pb2.MountState) -> None:
        for shadow in state.shadow_pods:
            shadow.repairs += 1

    async with scene.operator():
        await mounted(scene, whenBusy="Terminate")
        scene.agent.holders = [TRAIN]
        await scene.delete(scene.pod_path("target"), grace_s=0)
        scene.agent.say_of_all(agent_pb2.TARGET_ENDED)
        await scene.becomes("DeviceBusy")
        asked = len(scene.agent.removes)

        async def was_asked_again() -> bool:
            scene.agent.change(stir)  # the operator is woken, and nothing that it tells is new
            return len(scene.agent.removes) >= asked + 2

        with scene.counted(("patch",)) as writes:
            await scene.eventually(was_asked_again)
        assert writes == []
        (row,) = (await scene.get(scene.mount_path("dm")))["status"]["targets"]
        assert (row["phase"], len(row["holders"])) == ("Releasing", 1)


async def test_many_unmounts_that_wait_for_their_agent_are_few_at_once_and_hold_up_nobody(
    scene: Scene,
) -> None:
    names = [f"dm{n}" for n in range(REMOVES_AT_ONCE + 4)]
    await scene.running_pod()
    async with scene.operator(workers=2):
        for name in names:
            await scene.mount(name)
        for name in names:
            await scene.becomes("Mounted", name)
        scene.agent.remove_gate.clear()
        for name in names:
            await scene.unmount(name)

        async def all_wait() -> bool:
            return scene.agent.removing == REMOVES_AT_ONCE

        await scene.eventually(all_wait)
        await scene.mount("another")
        await scene.becomes("Mounted", "another", within_s=3)
        scene.agent.remove_gate.set()
        for name in (*names, "another"):
            await scene.unmount(name)
            await scene.gone(scene.mount_path(name))
    assert scene.agent.most_removing == REMOVES_AT_ONCE
