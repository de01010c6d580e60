# SPDX-License-Identifier: Apache-2.0
"""What a mount may say of its reservation, what a node's profiles say to it, and taking turns."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from component.operator.scene import LOOP, NODE, WRITES, Scene
from devicemount_agent_api.v1 import agent_pb2
from devicemount_operator import errors, pods, polling
from devicemount_operator.decide import reservation as placing
from devicemount_operator.decide import target, terms
from devicemount_operator.transport import JsonObject

PRIORITIES = "/apis/scheduling.k8s.io/v1/priorityclasses"
RUNTIMES = "/apis/node.k8s.io/v1/runtimeclasses"
QUEUE = "scheduling.volcano.sh/queue-name"
COMMAND = f"kubectl label node {NODE} devicemount.io/enabled=true --overwrite"


def profile(**said: Any) -> agent_pb2.ResourceState:
    return agent_pb2.ResourceState(profile="test", **said)


@pytest.fixture
async def priorities(scene: Scene) -> AsyncIterator[None]:
    """Have a class below and one above what pods have by default."""
    for name, value in (("dm-low", -5), ("dm-high", 5)):
        body = {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
        }
        await scene.ensure(PRIORITIES, body)
    yield
    for name in ("dm-low", "dm-high"):
        await scene.delete(f"{PRIORITIES}/{name}")


def message_of(mount: JsonObject) -> str:
    return str(next(c for c in mount["status"]["conditions"] if c["type"] == "Ready")["message"])


# What a mount may say


@pytest.mark.usefixtures("priorities")
async def test_all_that_a_mount_says_of_its_reservation_reaches_the_shadow_pod(
    scene: Scene,
) -> None:
    runtime = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "dm-vendor"},
        "handler": "vendor",
    }
    await scene.ensure(RUNTIMES, runtime)
    await scene.running_pod()
    async with scene.operator(hold_pull_secret="registry"):
        await scene.mount(
            reservation={
                "schedulerName": "volcano",
                "runtimeClassName": "dm-vendor",
                "priorityClassName": "dm-low",
                "annotations": {QUEUE: "q"},
                "acceptEnvFile": True,
            }
        )
        await scene.becomes("Mounted")
        shadow = await scene.shadow()
    assert shadow["metadata"]["annotations"][QUEUE] == "q"
    spec = shadow["spec"]
    assert (spec["schedulerName"], spec["runtimeClassName"]) == ("volcano", "dm-vendor")
    assert (spec["priorityClassName"], spec["priority"]) == ("dm-low", -5)
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert scene.agent.applies[-1].accept_env_file


@pytest.mark.usefixtures("priorities")
@pytest.mark.parametrize(
    ("reservation", "words"),
    [
        pytest.param({"priorityClassName": "dm-high"}, "dm-high (5) is above", id="priority"),
        pytest.param({"priorityClassName": "none"}, "none does not exist", id="no such class"),
        pytest.param(
            {"annotations": {"hami.io/vgpu-devices-to-allocate": "all"}},
            "hami.io/vgpu-devices-to-allocate; allowed: ",
            id="annotation",
        ),
    ],
)
async def test_what_a_mount_may_not_say_costs_no_pod(
    scene: Scene, reservation: dict[str, Any], words: str
) -> None:
    await scene.running_pod()
    async with scene.operator():
        with scene.counted() as writes:
            await scene.mount(reservation=reservation)
            mount = await scene.becomes("ReservationNotAllowed")
        assert "create pods" not in writes
    assert words in message_of(mount)


async def test_a_scheduler_that_nobody_runs_is_named(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "UNSEEN_S", 0.2)
    scene.agent.gate.clear()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount(reservation={"schedulerName": "ghost"})
        mount = await scene.becomes("Unschedulable")
        assert "no scheduler ghost has looked at shadow pod" in message_of(mount)
        await scene.unmount()
        await scene.gone(scene.mount_path("dm"))


# What a node's profiles say


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        pytest.param({"refused": "MPS is not supported"}, "UnsupportedResource", id="refused"),
        pytest.param({"env_only": "memory of the slice"}, "EnvFileNeeded", id="environment"),
    ],
)
async def test_what_the_profile_refuses_costs_no_pod(
    scene: Scene, said: dict[str, Any], reason: str
) -> None:
    scene.agent.profile = profile(**said)
    await scene.running_pod()
    async with scene.operator():
        with scene.counted() as writes:
            await scene.mount()
            mount = await scene.becomes(reason)
        assert "create pods" not in writes
        assert next(iter(said.values())) in message_of(mount)
        assert any(c["type"] == "Stalled" for c in mount["status"]["conditions"])
        await scene.unmount()
        await scene.gone(scene.mount_path("dm"))


async def test_what_only_the_environment_limits_is_mounted_where_that_is_accepted(
    scene: Scene,
) -> None:
    scene.agent.profile = profile(env_only="memory of the slice")
    await scene.running_pod()
    async with scene.operator():
        await scene.mount(reservation={"acceptEnvFile": True})
        await scene.becomes("Mounted")


async def test_profiles_cost_a_mount_no_request_to_the_api_server_and_no_wait_once_known(
    scene: Scene,
) -> None:
    scene.agent.profile = profile()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount("first")
        await scene.becomes("Mounted", "first")
        asked = scene.agent.node_calls
        with scene.counted((*WRITES, "get")) as requests:
            await scene.mount("second")
            await scene.becomes("Mounted", "second")
            await scene.eventually(lambda: scene.events("Mounted"))
        assert scene.agent.node_calls == asked
    assert [r for r in requests if r.startswith("get")] == ["get pods"]


async def test_an_agent_that_does_not_know_the_question_has_nothing_against_it(
    scene: Scene,
) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
    assert scene.agent.node_calls == 1


async def test_a_driver_that_is_missing_is_said_where_the_node_offers_nothing(
    scene: Scene,
) -> None:
    scene.agent.profile = profile(driver_missing="card 0000:3b:00.0 has no driver")
    scene.agent.gate.clear()
    await scene.node(allocatable=0)
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.complain(await scene.shadow())
        mount = await scene.becomes("DriverMissing")
    assert "card 0000:3b:00.0 has no driver" in message_of(mount)


async def test_devices_of_a_claim_are_given_back(scene: Scene) -> None:
    scene.agent.gate.clear()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        shadow = await scene.shadow()
        name = shadow["metadata"]["name"]
        mapping = {"containerName": "hold", "resourceName": LOOP, "requestName": "c0-r0"}
        claim = {"resourceClaimName": "gpu-x", "requestMappings": [mapping]}
        await scene.set_status(name, {"extendedResourceClaimStatus": claim})
        mount = await scene.becomes("AllocatedByDRA")
        assert "ResourceClaim gpu-x" in message_of(mount)
        await scene.gone(scene.pod_path(name))


# Taking turns


async def undecided(scene: Scene) -> list[JsonObject]:
    return [pod for pod in await scene.shadows() if pods.is_undecided(pod)]


async def test_twenty_mounts_at_once_have_one_shadow_pod_on_its_way_at_a_time(
    scene: Scene,
) -> None:
    """Only this test schedules, so a second pod on its way would stand until it is seen."""
    scene.agent.profile = profile(serialised=True)
    scene.agent.gate.clear()
    await scene.running_pod()
    async with scene.operator():
        await asyncio.gather(*(scene.mount(f"dm-{n}") for n in range(20)))
        for reserved in range(20):
            on_their_way = await scene.eventually(lambda: undecided(scene))
            assert len(on_their_way) == 1
            assert len(await scene.shadows()) == reserved + 1
            await scene.schedule(on_their_way[0])
        scene.agent.gate.set()
        for n in range(20):
            await scene.becomes("Mounted", f"dm-{n}")


async def test_who_waits_says_for_what_and_a_restarted_operator_lets_it_wait(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "TURN_S", 0.2)
    scene.agent.profile = profile(serialised=True)
    scene.agent.gate.clear()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount("first")
        first = await scene.shadow()
        await scene.mount("second")
        mount = await scene.becomes("Reserving", "second")
        assert first["metadata"]["name"] in message_of(mount)
        assert LOOP in message_of(mount)
    async with scene.operator():
        await scene.mount("third")
        await scene.becomes("Reserving", "third")
        assert len(await scene.shadows()) == 1
        await scene.schedule(first)
        scene.agent.gate.set()
        for name in ("first", "second", "third"):
            await scene.becomes("Mounted", name)


async def test_a_grant_lets_the_next_one_go_before_the_pod_says_that_it_runs(
    scene: Scene,
) -> None:
    scene.agent.profile = profile(serialised=True)
    await scene.running_pod()
    async with scene.operator():
        for n in range(5):
            await scene.mount(f"dm-{n}")
        for n in range(5):
            await scene.becomes("Mounted", f"dm-{n}")


async def test_a_mount_that_cannot_be_placed_does_not_keep_the_others_waiting(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "YIELD_S", 0.3)
    monkeypatch.setattr(placing, "RETRY_S", 0.3)
    scene.agent.profile = profile(serialised=True)
    scene.agent.gate.clear()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount("greedy", count=9)
        greedy = await scene.shadow()
        await scene.complain(greedy)
        await scene.becomes("Insufficient", "greedy")
        await scene.mount("modest")

        async def modest() -> JsonObject | None:
            said = {
                p["metadata"]["annotations"]["devicemount.io/mount"]: p
                for p in await scene.shadows()
            }
            return said.get("modest")

        await scene.schedule(await scene.eventually(modest))
        scene.agent.gate.set()
        await scene.becomes("Mounted", "modest")


async def test_a_post_whose_answer_is_lost_lets_nobody_overtake(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from devicemount_operator.cluster import Cluster

    create_pod, lost = Cluster.create_pod, asyncio.Event()

    async def without_an_answer(self: Cluster, namespace: str, body: JsonObject) -> JsonObject:
        posted = await create_pod(self, namespace, body)
        if not lost.is_set():
            lost.set()
            raise errors.Unreachable("cut by the test")
        return posted

    monkeypatch.setattr(Cluster, "create_pod", without_an_answer)
    scene.agent.profile = profile(serialised=True)
    scene.agent.gate.clear()
    await scene.running_pod()
    async with scene.operator():
        await scene.mount("a")
        await scene.mount("b")
        for _ in range(2):
            (only,) = await scene.eventually(lambda: undecided(scene))
            await scene.schedule(only)
        scene.agent.gate.set()
        await scene.becomes("Mounted", "a")
        await scene.becomes("Mounted", "b")


# The node's label


async def test_a_node_that_is_not_lent_is_said_with_the_command_that_helps(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "LABEL_POLL_S", 0.2)
    await scene.no_agent_pod()
    await scene.label_node("false")
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        mount = await scene.becomes("NodeNotEnabled")
        assert COMMAND in message_of(mount)
        assert await scene.shadows() == []
        await scene.label_node("true")
        await scene.agent_pod()
        await scene.becomes("Mounted")


async def test_taking_the_label_away_revokes_nothing_and_a_deletion_waits(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "SILENT_S", 0.5)
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        await scene.label_node(None)
        await scene.no_agent_pod()
        told = await scene.becomes("NodeNotEnabled")
        assert COMMAND in message_of(told)
        await scene.unmount()
        waiting = await scene.becomes("NodeNotEnabled")
        assert COMMAND in message_of(waiting)
        assert scene.agent.removes == []
        assert len(await scene.shadows()) == 1
        await scene.label_node("true")
        await scene.agent_pod()
        await scene.gone(scene.mount_path("dm"))


# What is amiss though the devices open


async def test_a_concern_makes_a_ready_mount_degraded_and_its_end_is_told(scene: Scene) -> None:
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        await scene.becomes("Mounted")
        scene.agent.worry(agent_pb2.Concern(reason="DeviceUnhealthy", message="loop0 is ill"))
        (warning,) = await scene.eventually(lambda: scene.events("Degraded"))
        assert (warning["type"], warning["message"]) == (
            "Warning",
            "DeviceUnhealthy: loop0 is ill.",
        )
        mount = await scene.becomes("Mounted")
        said = {c["type"]: (c["status"], c["reason"]) for c in mount["status"]["conditions"]}
        assert said["Ready"] == ("True", "Mounted")
        assert said["Degraded"] == ("True", "DeviceUnhealthy")
        scene.agent.worry()
        (over,) = await scene.eventually(lambda: scene.events("Recovered"))
        assert over["type"] == "Normal"
        mount = await scene.becomes("Mounted")
        assert "Degraded" not in {c["type"] for c in mount["status"]["conditions"]}


async def test_an_allocation_that_is_understood_late_needs_no_other_shadow_pod(
    scene: Scene,
) -> None:
    text = "no CDI spec names vendor.io/x=1"
    scene.agent.refusal = (grpc.StatusCode.FAILED_PRECONDITION, "AllocationUnknown", text)
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        mount = await scene.becomes("AllocationUnknown")
        assert text in message_of(mount)
        before = await scene.shadow()

        async def asked_again() -> bool:
            return len(scene.agent.applies) >= 2

        await scene.eventually(asked_again)
        scene.agent.refusal = None
        await scene.becomes("Mounted")
    assert [pod["metadata"]["uid"] for pod in await scene.shadows()] == [before["metadata"]["uid"]]


async def test_a_slice_that_is_anothers_is_given_back_and_reserved_anew(scene: Scene) -> None:
    text = "the slice is another pod's"
    scene.agent.refusal = (grpc.StatusCode.ABORTED, "ReservationLost", text)
    await scene.running_pod()
    async with scene.operator():
        await scene.mount()
        mount = await scene.becomes("ReservationLost")
        assert text in message_of(mount)
        scene.agent.refusal = None
        await scene.becomes("Mounted")
    names = [request.shadow_pods[0].uid for request in scene.agent.applies]
    assert names[0] != names[-1]
    assert [pod["metadata"]["uid"] for pod in await scene.shadows()] == [names[-1]]
