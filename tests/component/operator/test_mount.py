# SPDX-License-Identifier: Apache-2.0
"""A mount and back, against the real API server: what is written, by whom, how often, and in which
order."""

import time
from pathlib import Path

from component.operator import stub_agent
from component.operator.scene import FINALIZER, LOOP, WRITES, Scene
from devicemount_agent_api.v1 import agent_pb2


async def test_a_mount_becomes_ready_and_goes_without_a_trace(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.operator():
        with scene.counted() as mounting:
            await scene.mount()
            mount = await scene.becomes("Mounted")
            await scene.eventually(lambda: scene.events("Mounted"))
        assert sorted(mounting) == [
            "create events",
            "create pods",
            "patch devicemounts/status",
            "update devicemounts",
        ]
        assert mount["metadata"]["finalizers"] == [FINALIZER]
        target = mount["status"]["targets"][0]
        assert mount["status"]["ready"] == "1/1"
        assert target["devices"][0]["nodes"][0]["path"] == "/dev/loop0"
        assert 0 < target["timings"]["reservedMs"] <= target["timings"]["readyMs"]
        with scene.counted() as unmounting:
            await scene.unmount()
            await scene.gone(scene.mount_path("dm"))
            await scene.eventually(lambda: scene.events("Unmounted"))
        assert sorted(unmounting) == ["create events", "delete pods", "update devicemounts"]
        assert await scene.shadows() == []
        assert scene.agent.states == {}


async def test_with_the_finalizer_set_at_admission_a_mount_is_three_writes(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.finalizer_policy(), scene.operator():
        with scene.counted() as mounting:
            await scene.mount()
            mount = await scene.becomes("Mounted")
            await scene.eventually(lambda: scene.events("Mounted"))
        assert sorted(mounting) == ["create events", "create pods", "patch devicemounts/status"]
        assert mount["metadata"]["finalizers"] == [FINALIZER]
        await scene.unmount()
        await scene.gone(scene.mount_path("dm"))


async def test_the_request_names_the_shadow_pod_as_it_was_posted(scene: Scene) -> None:
    target = await scene.running_pod()
    async with scene.operator():
        mount = await scene.mount()
        await scene.becomes("Mounted")
    shadow = await scene.shadow()
    request = scene.agent.applies[0]
    assert (request.key.mount_uid, request.key.pod_uid) == (
        mount["metadata"]["uid"],
        target["metadata"]["uid"],
    )
    assert request.shadow_pods[0].uid == shadow["metadata"]["uid"]
    assert dict(request.shadow_pods[0].resources) == {LOOP: 1}
    assert request.epoch.transitions > 0


async def test_deleting_a_mount_whose_apply_waits_takes_less_than_a_second(scene: Scene) -> None:
    scene.agent.gate.clear()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount(finalizers=(FINALIZER,))

        async def applies() -> bool:
            return bool(scene.agent.waiting)

        await scene.eventually(applies)
        started = time.monotonic()
        await scene.unmount()
        await scene.gone(scene.mount_path("dm"))
        assert time.monotonic() - started < 1.0
        assert await scene.shadows() == []


async def test_a_busy_device_is_kept_and_its_holder_named_until_it_ends(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        scene.agent.holders = [agent_pb2.Holder(pid=7, command="train", blocking=True)]
        await scene.unmount()
        mount = await scene.becomes("DeviceBusy")
        assert mount["status"]["targets"][0]["holders"][0]["pid"] == 7
        assert "train" in str(mount["status"]["conditions"])
        assert len(await scene.shadows()) == 1
        scene.agent.holders = []
        scene.agent.say_of_all(agent_pb2.GRANTED)
        await scene.gone(scene.mount_path("dm"), within_s=3)


async def test_a_restarted_operator_takes_up_what_it_finds(scene: Scene) -> None:
    scene.agent.gate.clear()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        before = await scene.shadow()
    scene.agent.gate.set()
    async with scene.operator():
        await scene.becomes("Mounted")
        after = await scene.shadows()
    assert [pod["metadata"]["uid"] for pod in after] == [before["metadata"]["uid"]]
    first, last = scene.agent.applies[0], scene.agent.applies[-1]
    assert last.epoch.transitions > first.epoch.transitions


async def test_a_mounted_device_costs_the_api_server_nothing(scene: Scene) -> None:
    """Neither while it is mounted nor when the operator starts again."""
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
    applied = len(scene.agent.applies)
    with scene.counted((*WRITES, "get", "list")) as requests:
        async with scene.operator():
            await scene.eventually(scene.agent.listed(times=8))
    assert requests == []
    assert len(scene.agent.applies) == applied


async def test_a_pod_that_cannot_be_scheduled_is_explained_and_waited_for(scene: Scene) -> None:
    scene.agent.gate.clear()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount(count=5)
        shadow = await scene.shadow()
        await scene.complain(shadow)
        mount = await scene.becomes("Insufficient")
        assert f"has 4 {LOOP} in all" in str(mount["status"]["conditions"])
        await scene.schedule(shadow)
        scene.agent.gate.set()
        await scene.becomes("Mounted")


async def test_suspending_gives_back_and_resuming_mounts_again(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        await scene.call("PATCH", scene.mount_path("dm"), {"spec": {"suspend": True}})
        await scene.eventually(lambda: scene.events("Suspended"))
        assert await scene.shadows() == []
        assert scene.agent.states == {}
        await scene.call("PATCH", scene.mount_path("dm"), {"spec": {"suspend": False}})
        await scene.becomes("Mounted")


async def test_an_agent_is_reached_at_an_ipv6_address(scene: Scene, certificates: Path) -> None:
    await scene.running_pod()
    async with stub_agent.serving(certificates, host="[::1]") as agent:
        await scene.agent_pod(ip="::1")
        async with scene.operator(agent_port=agent.port):
            await scene.mount()
            await scene.becomes("Mounted")
            await scene.unmount()
            await scene.gone(scene.mount_path("dm"))
