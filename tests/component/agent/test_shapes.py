# SPDX-License-Identifier: Apache-2.0
"""Devices that are mounted, since none can be made in a user namespace, by a whole agent: shared
between grants, found again after a crash, withheld and granted again, gone at the end. And what
becomes of a device whose container's main process makes namespaces of its own afterwards.
"""

import asyncio

import grpc
import pytest

from devicemount_agent_api.failpoints import Failpoint
from devicemount_agent_api.v1 import agent_pb2 as pb

from .conftest import RESOURCE, Node, Shadow, Target
from .test_edits import POINTS, mounted, names
from .test_health import VCSA, Card, card, is_back, reserved, said
from .test_mount import can_open, until
from .test_recovery import killed_at

__all__ = ["card"]

OTHER_MOUNT_UID = "22222222-bbbb-4bbb-8bbb-222222222222"
ALWAYS = {"/run/devicemount"}


async def test_a_device_is_given_and_taken_back(node: Node) -> None:
    target = node.target(own_users=True)
    before = names(target)
    async with node.agent():
        state = await node.apply(target, node.reserved(target, "vcs1"))
        assert state.phase == pb.GRANTED
        assert not state.shadow_pods[0].concerns
        assert mounted(target) == ALWAYS | {"/dev/vcs1"}
        assert can_open(target, "vcs1")
    async with node.agent():
        assert can_open(target, "vcs1")
        fd = target.box.inside.open("/dev/vcs1")
        assert (await node.remove(target)).phase == pb.BUSY
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED
        assert mounted(target) == set()
        assert names(target) == before


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.value)
async def test_an_agent_that_was_killed_goes_forward(node: Node, point: Failpoint) -> None:
    target = node.target(own_users=True)
    shadow = node.reserved(target, "vcs1")
    before = names(target)
    async with killed_at(node, point) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Apply(node.apply_request(target, shadow), timeout=5)
    async with node.agent():
        assert [state.phase for state in await node.states()] == [pb.GRANTED]
        assert can_open(target, "vcs1")
        assert (await node.remove(target)).phase == pb.REMOVED
        assert mounted(target) == set()
        assert names(target) == before


def replica(node: Node, target: Target, ordinal: int) -> Shadow:
    """A shadow pod that has one of several ids of the same device."""
    shadow = node.shadow(target)
    place = [("/dev/vcs1", "/dev/vcs1")]
    node.kubelet.choose(shadow.pod, RESOURCE, {f"vcs1::{ordinal}": place})
    return shadow


async def test_a_shared_device_goes_with_the_last_of_its_grants(node: Node) -> None:
    one = node.target(own_users=True)
    other = type(one)(one.pod, one.box, OTHER_MOUNT_UID)
    before = names(one)
    async with node.agent():
        states = await asyncio.gather(
            *(node.apply(each, replica(node, each, n)) for n, each in enumerate((one, other)))
        )
        assert [state.phase for state in states] == [pb.GRANTED, pb.GRANTED]
        assert (await node.remove(one)).phase == pb.REMOVED
        assert can_open(other, "vcs1")
        assert (await node.remove(other)).phase == pb.REMOVED
        assert mounted(one) == set()
        assert names(one) == before


async def test_a_device_that_comes_back_as_another_number_is_granted_again(
    node: Node, card: Card
) -> None:
    target = node.target(own_users=True)
    before = names(target)
    async with node.agent():
        await node.apply(target, reserved(node, target, card))
        assert can_open(target, "card")
        card.unplug()
        await until(lambda: "dev/card" not in names(target), "the file is gone")
        card.plug(VCSA)
        await said(node, is_back)
        assert can_open(target, "card")
        assert (await node.remove(target)).phase == pb.REMOVED
        assert mounted(target) == set()
        assert names(target) == before


@pytest.mark.parametrize("own_users", [False, True], ids=["of-the-node", "of-own-users"])
async def test_a_main_process_that_makes_a_mount_namespace_of_its_own(
    node: Node, *, own_users: bool
) -> None:
    one = node.target(own_users=own_users)
    other = type(one)(one.pod, one.box, OTHER_MOUNT_UID)
    before = names(one)
    async with node.agent():
        await node.apply(one, node.reserved(one, "vcs1"))
        one.box.inside.tell("unshare")
        state = await node.apply(other, node.reserved(other, "vcsa1"))
        assert state.phase == pb.GRANTED
        assert can_open(one, "vcs1")
        assert can_open(other, "vcsa1")
        one.box.inside.tell("unshare")
        for each in (one, other):
            assert (await node.remove(each)).phase == pb.REMOVED
        assert mounted(one) == set()
        assert names(one) == before


async def test_one_that_makes_a_user_namespace_too_gets_no_more_and_keeps_no_access(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    one = node.target()
    node.runtime.containers[one.box.id].namespaces = [{"type": "mount"}]
    other = type(one)(one.pod, one.box, OTHER_MOUNT_UID)
    async with node.agent():
        await node.apply(one, node.reserved(one, "vcs1"))
        one.box.inside.tell("unshare", "users")
        with pytest.raises(grpc.aio.AioRpcError, match="has made a user namespace of its own"):
            await node.apply(other, node.reserved(other, "vcsa1"))
        assert (await node.remove(one)).phase == pb.REMOVED
        assert not can_open(one, "vcs1")
    (left,) = [m for m in caplog.messages if m.startswith("left in container")]
    assert "/dev/vcs1" in left
    assert "has made a user namespace of its own" in left
