# SPDX-License-Identifier: Apache-2.0
"""Apply and Remove against a whole agent: what is granted, when, to whom; and what is left
afterwards.
"""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest

from devicemount_agent_api.errors import reason_of
from devicemount_agent_api.v1 import agent_pb2 as pb

from .conftest import DEADLINE_S, MOUNT_UID, RESOURCE, Node, Shadow, Target


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds; `what` is for the reader of a failure."""
    give_up = asyncio.get_running_loop().time() + DEADLINE_S
    while True:
        if condition():
            return
        assert asyncio.get_running_loop().time() < give_up, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.005)


async def seen(node: Node, phase: "pb.Phase.ValueType") -> pb.MountState:
    """Wait until the node's only mount is in that phase."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            states = await node.states()
            if [state.phase for state in states] == [phase]:
                return states[0]
            await asyncio.sleep(0.005)


def can_open(target: Target, device: str) -> bool:
    try:
        return target.box.inside.can_open(f"/dev/{device}")
    except FileNotFoundError:
        return False


async def refusal(call: Awaitable[pb.MountState]) -> tuple[str, grpc.StatusCode]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return reason_of(caught.value), caught.value.code()


async def refused(node: Node, target: Target, *shadows: Shadow) -> tuple[str, grpc.StatusCode]:
    return await refusal(node.apply(target, *shadows))


async def test_a_device_is_given_and_taken_back(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent():
        state = await node.apply(target, shadow)

        assert state.phase == pb.GRANTED
        assert state.container_id == target.box.id
        assert state.granted_unix_ns > 0
        (of_shadow,) = state.shadow_pods
        (device,) = of_shadow.devices
        assert (of_shadow.uid, device.resource, device.id) == (shadow.pod.uid, RESOURCE, "vcs1")
        assert device.nodes == [pb.Node(path="/dev/vcs1", type="c", major=7, minor=1, access="rw")]
        assert set(state.timings_us) >= {
            "target", "chosen", "intent", "granted", "verified", "committed",
        }  # fmt: skip
        assert can_open(target, "vcs1")
        assert not can_open(target, "vcsa1")
        assert await node.states() == [state]

        removed = await node.remove(target)

        assert removed.phase == pb.REMOVED
        assert not (target.box.root / "dev/vcs1").exists()
        assert not can_open(target, "vcs1")
        assert await node.states() == []


async def test_it_waits_for_the_kubelets_choice(node: Node) -> None:
    target = node.target()
    shadow = node.shadow(target)
    async with node.agent():
        applying = asyncio.create_task(node.apply(target, shadow))
        await seen(node, pb.WAITING)
        assert node.kubelet.lists == 1  # the one of its start: none is spent before the choice

        node.choose(shadow, "vcs1")

        assert (await applying).phase == pb.GRANTED
        assert node.kubelet.lists == 3


async def test_a_choice_that_does_not_come_is_said_before_the_deadline(node: Node) -> None:
    target = node.target()
    async with node.agent():
        state = await node.apply(target, node.shadow(target), timeout_s=0.7)
        assert state.phase == pb.WAITING
        assert await node.states() == []


async def test_remove_ends_a_waiting_apply_at_once(node: Node) -> None:
    target = node.target()
    shadow = node.shadow(target)
    async with node.agent():
        applying = asyncio.create_task(node.apply(target, shadow))
        await seen(node, pb.WAITING)

        removed = await node.remove(target)

        assert removed.phase == pb.REMOVED
        assert await refusal(applying) == ("StaleRequest", grpc.StatusCode.ABORTED)
        node.choose(shadow, "vcs1")
        node.revision = 0
        assert await refused(node, target, shadow) == ("StaleRequest", grpc.StatusCode.ABORTED)
        assert not can_open(target, "vcs1")


async def test_remove_ends_an_apply_that_has_granted_one_of_two_shadow_pods(node: Node) -> None:
    target = node.target()
    first, second = node.reserved(target, "vcs1"), node.shadow(target, 1)
    async with node.agent():
        applying = asyncio.create_task(node.apply(target, first, second, timeout_s=30))
        await until(lambda: can_open(target, "vcs1"), "the first is granted")

        assert (await node.remove(target)).phase == pb.REMOVED

        assert await refusal(applying) == ("StaleRequest", grpc.StatusCode.ABORTED)
        assert not can_open(target, "vcs1")


async def test_remove_of_what_was_never_seen_is_removed(node: Node) -> None:
    target = node.target()
    async with node.agent():
        assert (await node.remove(target)).phase == pb.REMOVED
        assert (await node.remove(target, policy=pb.LOST)).phase == pb.REMOVED


async def test_ids_alone_prove_nothing(node: Node) -> None:
    """A dead pod's entry with the same ids stands in the checkpoint, and List is ahead of it."""
    target = node.target()
    dead = node.reserved(target, "vcs1", ordinal=7)
    node.kubelet.forget(dead.pod)
    shadow = node.shadow(target)
    node.kubelet.shown[shadow.pod.namespace, shadow.pod.name] = ("hold", {RESOURCE: ["vcs1"]})
    async with node.agent():
        assert (await node.apply(target, shadow, timeout_s=0.7)).phase == pb.WAITING
        assert not can_open(target, "vcs1")


async def test_nothing_is_granted_while_list_does_not_show_the_shadow_pod(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    node.kubelet.forget(shadow.pod)
    async with node.agent() as agent:
        assert (await node.apply(target, shadow, timeout_s=0.7)).phase == pb.WAITING
        assert not can_open(target, "vcs1")
        assert not agent.journal.ledger.grants


@pytest.mark.parametrize(
    "shown",
    [("hold", {RESOURCE: ["another"]}), ("sidecar", {RESOURCE: ["vcs1"]})],
    ids=["with another id", "in another container"],
)
async def test_what_lasts_between_the_kubelets_two_sources_is_no_success_and_no_wait(
    node: Node, shown: tuple[str, dict[str, list[str]]]
) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    node.kubelet.shown[shadow.pod.namespace, shadow.pod.name] = shown
    async with node.agent() as agent:
        reason, _ = await refusal(node.apply(target, shadow, timeout_s=2))
        assert reason == "AllocationUnknown"
        assert not can_open(target, "vcs1")
        assert not agent.journal.ledger.grants


async def test_a_reservation_that_went_during_the_grant_is_revoked(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent() as agent:
        passing, stopped = asyncio.Event(), asyncio.Event()
        passing.set()
        node.kubelet.on_list = [passing, stopped]
        applying = asyncio.create_task(node.apply(target, shadow))
        await until(lambda: can_open(target, "vcs1"), "granted")

        node.kubelet.forget(shadow.pod)
        stopped.set()

        assert await refusal(applying) == ("ReservationLost", grpc.StatusCode.ABORTED)
        assert not can_open(target, "vcs1")
        assert not agent.journal.ledger.grants


async def test_a_sandbox_that_is_no_shadow_pod_of_the_mount_is_revoked(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    node.runtime.sandboxes.append(shadow.pod)  # without the label
    async with node.agent():
        assert await refused(node, target, shadow) == (
            "NotAllowed", grpc.StatusCode.PERMISSION_DENIED,
        )  # fmt: skip
        assert not can_open(target, "vcs1")
        shadow.pod.labels["devicemount.io/shadow"] = MOUNT_UID
        assert (await node.apply(target, shadow)).phase == pb.GRANTED


async def test_fewer_devices_than_asked_are_insufficient(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    shadow.resources[RESOURCE] = 2
    async with node.agent():
        assert await refused(node, target, shadow) == (
            "Insufficient", grpc.StatusCode.FAILED_PRECONDITION,
        )  # fmt: skip
        assert not can_open(target, "vcs1")


async def test_a_target_that_does_not_run_is_said_at_once(node: Node) -> None:
    target = node.target()
    node.runtime.containers[target.box.id].is_running = False
    async with node.agent():
        assert await refused(node, target, node.shadow(target)) == (
            "TargetNotRunning", grpc.StatusCode.FAILED_PRECONDITION,
        )  # fmt: skip


async def test_a_stale_hint_is_looked_up_again(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent():
        request = node.apply_request(target, shadow)
        request.target.container_id = "f" * 64
        assert (await node.stub.Apply(request, timeout=DEADLINE_S)).phase == pb.GRANTED


async def test_a_hint_at_another_pods_container_is_not_followed(node: Node) -> None:
    target, other = node.target(), node.target("other-0")
    shadow = node.reserved(target, "vcs1")
    async with node.agent():
        request = node.apply_request(target, shadow)
        request.target.container_id = other.box.id
        state = await node.stub.Apply(request, timeout=DEADLINE_S)
        assert state.container_id == target.box.id
        assert not can_open(other, "vcs1")


async def test_a_target_of_another_namespace_than_was_said_gets_nothing(node: Node) -> None:
    target = node.target()
    other = Target(target.pod, target.box, "22222222-aaaa-4aaa-8aaa-222222222222")
    shadow, of_other = node.reserved(target, "vcs1"), node.reserved(other, "vcsa1")
    async with node.agent():
        request = node.apply_request(target, shadow)
        request.target.namespace = "team-b"
        for _ in ("the container is new to the agent", "and when it is known"):
            assert await refusal(node.stub.Apply(request, timeout=DEADLINE_S)) == (
                "ContainerMismatch",
                grpc.StatusCode.FAILED_PRECONDITION,
            )
            await node.apply(other, of_other)
        assert not can_open(target, "vcs1")


async def test_two_mounts_of_one_container_leave_each_other_alone(node: Node) -> None:
    target = node.target()
    second = Target(target.pod, target.box, "22222222-aaaa-4aaa-8aaa-222222222222")
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        await node.apply(second, node.reserved(second, "vcsa1"))

        assert (await node.remove(target)).phase == pb.REMOVED

        assert not can_open(target, "vcs1")
        assert can_open(target, "vcsa1")


async def test_one_number_in_two_mounts_is_counted(node: Node) -> None:
    target = node.target()
    second = Target(target.pod, target.box, "22222222-aaaa-4aaa-8aaa-222222222222")
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        shared = node.shadow(second)
        node.kubelet.choose(shared.pod, RESOURCE, {"vcs1::1": [("/dev/vcs1", "/dev/vcs1")]})
        await node.apply(second, shared)
        fd = target.box.inside.open("/dev/vcs1")

        assert (await node.remove(target)).phase == pb.REMOVED
        assert can_open(target, "vcs1")
        assert (await node.remove(second)).phase == pb.BUSY

        target.box.inside.close(fd)
        assert (await node.remove(second)).phase == pb.REMOVED
        assert not (target.box.root / "dev/vcs1").exists()


async def test_a_held_device_stays_and_its_holder_is_named(node: Node) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        fd = target.box.inside.open("/dev/vcs1")

        busy = await node.remove(target)

        assert busy.phase == pb.BUSY
        (holder,) = busy.shadow_pods[0].holders
        assert (holder.pod_uid, holder.container_id) == (target.pod.uid, target.box.id)
        assert "actor.py" in holder.command
        assert can_open(target, "vcs1")

        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED


async def test_an_apply_after_a_busy_remove_is_granted_again(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent():
        await node.apply(target, shadow)
        target.box.inside.open("/dev/vcs1")
        await node.remove(target)
        state = await node.apply(target, shadow)
        assert (state.phase, list(state.shadow_pods[0].holders)) == (pb.GRANTED, [])


async def test_a_lost_reservation_ends_the_holder(node: Node) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        target.box.inside.open("/dev/vcs1")

        state = await node.remove(target, policy=pb.LOST)

        assert state.phase == pb.REMOVED
        await until(lambda: target.box.inside.process.poll() == -9, "killed")


async def test_the_end_of_the_target_is_told(node: Node) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        target.box.inside.process.kill()
        await seen(node, pb.TARGET_ENDED)
        assert (await node.remove(target)).phase == pb.REMOVED


async def test_a_restarted_container_is_grafted_again(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent():
        await node.apply(target, shadow)
        target = node.restarted(target)

        state = await node.apply(target, shadow)

        assert (state.phase, state.container_id) == (pb.GRANTED, target.box.id)
        assert can_open(target, "vcs1")
        assert (await node.remove(target)).phase == pb.REMOVED
        assert not can_open(target, "vcs1")


async def test_a_path_conflict_leaves_nothing_behind(node: Node) -> None:
    target = node.target()
    (target.box.root / "dev/vcs1").write_text("mine")
    async with node.agent() as agent:
        assert (await refused(node, target, node.reserved(target, "vcs1", "vcsa1")))[0] == (
            "PathConflict"
        )
        assert (target.box.root / "dev/vcs1").read_text() == "mine"
        assert not can_open(target, "vcsa1")
        assert not agent.journal.ledger.grants


async def test_an_omitted_shadow_pod_that_lives_is_refused(node: Node) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        assert await refused(node, target, node.reserved(target, "vcsa1", ordinal=1)) == (
            "StillReserved", grpc.StatusCode.FAILED_PRECONDITION,
        )  # fmt: skip
        assert can_open(target, "vcs1")


async def test_an_omitted_shadow_pod_that_is_gone_is_lost_before_the_new_grant(node: Node) -> None:
    target = node.target()
    gone = node.reserved(target, "vcs1")
    async with node.agent():
        await node.apply(target, gone)
        node.kubelet.forget(gone.pod)

        state = await node.apply(target, node.reserved(target, "vcsa1", ordinal=1))

        assert state.phase == pb.GRANTED
        assert not can_open(target, "vcs1")
        assert can_open(target, "vcsa1")


async def test_a_device_that_stands_under_another_living_pod_is_revoked_at_once(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent():
        await node.apply(target, shadow)
        node.kubelet.forget(shadow.pod)
        node.kubelet.choose(
            node.shadow(target, 9).pod, RESOURCE, {"vcs1": []}, container="competitor"
        )
        await until(lambda: not can_open(target, "vcs1"), "revoked")
        assert [state.phase for state in await node.states()] == [pb.LOST_PHASE]
        assert (await node.remove(target, policy=pb.LOST)).phase == pb.REMOVED


async def test_the_kubelets_rate_limit_is_waited_out(node: Node) -> None:
    target = node.target()
    async with node.agent():
        limited = (grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
        node.kubelet.refusals = [limited] * 5
        assert (await node.apply(target, node.reserved(target, "vcs1"))).phase == pb.GRANTED


async def test_an_answer_above_the_message_limit_is_not_tried_again(node: Node) -> None:
    target = node.target()
    async with node.agent():
        large = "Received message larger than max (67108865 vs. 67108864)"
        node.kubelet.refusals = [(grpc.StatusCode.RESOURCE_EXHAUSTED, large)]
        assert await refused(node, target, node.reserved(target, "vcs1")) == (
            "NodeUnavailable", grpc.StatusCode.UNAVAILABLE,
        )  # fmt: skip


async def test_calls_of_list_share_a_flight(node: Node) -> None:
    async with node.agent() as agent:
        before = node.kubelet.lists
        blocked = asyncio.Event()
        node.kubelet.on_list = [blocked]
        calls = [asyncio.create_task(agent.pod_resources.list()) for _ in range(20)]
        await until(lambda: node.kubelet.lists == before + 1, "in flight")
        calls += [asyncio.create_task(agent.pod_resources.list()) for _ in range(20)]
        blocked.set()
        await asyncio.gather(*calls)
        assert node.kubelet.lists == before + 2


async def test_many_mounts_of_one_container_come_and_go_at_once(node: Node) -> None:
    target = node.target()
    devices = ("vcs", "vcs1", "vcsa1", "vcsu1")
    mounts = [
        Target(target.pod, target.box, f"{at:08d}-aaaa-4aaa-8aaa-222222222222") for at in range(4)
    ]
    async with node.agent() as agent:
        shadows = [node.shadow(mount) for mount in mounts]
        applying = [
            asyncio.create_task(node.apply(mount, shadow, timeout_s=10))
            for mount, shadow in zip(mounts, shadows, strict=True)
        ]
        for shadow, device in zip(shadows, devices, strict=True):
            node.choose(shadow, device)
        assert {(await done).phase for done in applying} == {pb.GRANTED}
        assert all(can_open(target, device) for device in devices)

        removing = [asyncio.create_task(node.remove(mount)) for mount in mounts]
        assert {(await done).phase for done in removing} == {pb.REMOVED}
        assert not any(can_open(target, device) for device in devices)
        assert not agent.grafts.live


async def test_remove_waits_for_a_grant_that_has_begun(node: Node) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent():
        passing, stopped = asyncio.Event(), asyncio.Event()
        passing.set()
        node.kubelet.on_list = [passing, stopped]
        applying = asyncio.create_task(node.apply(target, shadow))
        await until(lambda: can_open(target, "vcs1"), "granted")

        removing = asyncio.create_task(node.remove(target))
        stopped.set()

        assert (await applying).phase == pb.GRANTED
        assert (await removing).phase == pb.REMOVED
        assert not can_open(target, "vcs1")
