# SPDX-License-Identifier: Apache-2.0
"""Terminate: access goes first, then exactly the holders in the target pod end, call by call."""

import os
import signal

import pytest

from devicemount_agent.holders.end import ASKED, FOREIGN, MAIN
from devicemount_agent.kernel.files import closing
from devicemount_agent_api.v1 import agent_pb2 as pb
from node.agent.containers import Actor

from .conftest import Node, Shadow, Target
from .test_mount import can_open

LATER_S = 3600


def inside(target: Target) -> Actor:
    assert isinstance(target.box.inside, Actor)
    return target.box.inside


def holders(state: pb.MountState) -> dict[int, str]:
    """Return the notes of those that block; others on this machine have their own reasons."""
    found = (one for shadow in state.shadow_pods for one in shadow.holders)
    return {one.pid: one.note for one in found if one.blocking}


async def mounted(node: Node, name: str = "notebook-0") -> tuple[Target, Shadow]:
    target = node.target(name)
    shadow = node.reserved(target, "vcs1")
    await node.apply(target, shadow)
    return target, shadow


async def test_the_holders_end_and_the_main_process_stays(node: Node) -> None:
    async with node.agent():
        target, _ = await mounted(node)
        fd = inside(target).open("/dev/vcs1")
        child = inside(target).tell("fork_child")
        inside(target).close(fd)
        busy = await node.remove(target)
        assert (busy.phase, list(holders(busy))) == (pb.BUSY, [child])
        named = busy.shadow_pods[0].holders[0]
        assert (named.container, named.pod_name) == ("notebook", target.pod.name)
        gone = await node.remove(target, policy=pb.TERMINATE, grace_s=LATER_S)
        assert gone.phase == pb.REMOVED
        assert inside(target).process.poll() is None
        assert not can_open(target, "vcs1")


async def test_the_main_process_is_named_and_ended_only_when_that_is_asked_for(node: Node) -> None:
    async with node.agent():
        target, _ = await mounted(node)
        inside(target).open("/dev/vcs1")
        busy = await node.remove(target, policy=pb.TERMINATE)
        assert (busy.phase, busy.granted_unix_ns) == (pb.BUSY, 0)
        assert holders(busy) == {inside(target).pid: MAIN}
        assert not can_open(target, "vcs1"), "access goes first"
        gone = await node.remove(target, policy=pb.TERMINATE, include_main=True)
        assert gone.phase == pb.REMOVED
        assert inside(target).process.wait(5) == -signal.SIGKILL


async def test_a_sidecar_keeps_what_it_was_allocated_itself(node: Node) -> None:
    """It neither blocks nor is it ended, though its pod is the target's."""
    async with node.agent():
        target, _ = await mounted(node)
        with closing(os.open("/dev/vcs1", os.O_RDONLY)) as fd:
            sidecar = node.beside(target, pass_fds=(fd,), permitted=[("c", 7, 1)])
        inside(target).open("/dev/vcs1")
        busy = await node.remove(target)
        assert holders(busy).keys() == {inside(target).pid}
        gone = await node.remove(target, policy=pb.TERMINATE, include_main=True)
        assert gone.phase == pb.REMOVED
        assert inside(target).process.wait(5) == -signal.SIGKILL
        assert sidecar.process.poll() is None


async def test_kill_comes_when_the_grace_has_passed_since_the_first_call(node: Node) -> None:
    async with node.agent():
        target, _ = await mounted(node)
        inside(target).open("/dev/vcs1")
        inside(target).tell("ignore_term")
        asked = await node.remove(target, policy=pb.TERMINATE, grace_s=LATER_S, include_main=True)
        assert holders(asked) == {inside(target).pid: ASKED}
        gone = await node.remove(target, policy=pb.TERMINATE, grace_s=1, include_main=True)
        assert gone.phase == pb.REMOVED, "the first call was a second ago: it waited for an end"


async def test_an_apply_ends_a_termination(node: Node) -> None:
    async with node.agent():
        target, shadow = await mounted(node)
        inside(target).open("/dev/vcs1")
        await node.remove(target, policy=pb.TERMINATE)
        again = await node.apply(target, shadow)
        assert (again.phase, holders(again)) == (pb.GRANTED, {})
        assert again.granted_unix_ns
        assert can_open(target, "vcs1")


async def test_to_wait_after_all_signals_nobody_and_gives_nothing_back(node: Node) -> None:
    async with node.agent():
        target, _ = await mounted(node)
        inside(target).open("/dev/vcs1")
        await node.remove(target, policy=pb.TERMINATE)
        busy = await node.remove(target)
        assert (busy.phase, busy.granted_unix_ns) == (pb.BUSY, 0)
        assert holders(busy) == {inside(target).pid: ""}
        assert not can_open(target, "vcs1")


async def test_another_pod_that_was_handed_the_device_blocks_and_is_not_signalled(
    node: Node,
) -> None:
    async with node.agent():
        target, _ = await mounted(node)
        fd = os.open("/dev/vcs1", os.O_RDONLY)
        stranger = node.lab.container(pass_fds=(fd,)).inside
        os.close(fd)
        assert isinstance(stranger, Actor)
        busy = await node.remove(target, policy=pb.TERMINATE)
        assert holders(busy) == {stranger.pid: FOREIGN}
        assert stranger.process.poll() is None
        stranger.close(fd)
        assert (await node.remove(target, policy=pb.TERMINATE)).phase == pb.REMOVED


@pytest.mark.parametrize("policy", [pb.WAIT, pb.TERMINATE, pb.LOST])
async def test_a_shared_number_another_tenant_uses_it_undisturbed(
    node: Node, policy: "pb.Policy.ValueType"
) -> None:
    async with node.agent():
        leaving, _ = await mounted(node, "leaving-0")
        staying = node.target("staying-0")
        staying.mount_uid = "22222222-bbbb-4bbb-8bbb-222222222222"
        node.kubelet.choose(
            (other := node.shadow(staying)).pod,
            "example.com/vcs",
            {"shared-2": [("/dev/vcs1", "/dev/vcs1")]},
        )
        await node.apply(staying, other)
        fd = inside(staying).open("/dev/vcs1")
        assert (await node.remove(leaving, policy=policy)).phase == pb.REMOVED
        assert can_open(staying, "vcs1")
        inside(staying).close(fd)
        assert inside(staying).process.poll() is None


async def test_the_end_of_the_last_holder_is_told(node: Node) -> None:
    async with node.agent():
        target, _ = await mounted(node)
        fd = inside(target).open("/dev/vcs1")
        child = inside(target).tell("fork_child")
        assert child is not None
        inside(target).close(fd)
        stream = node.stub.Watch(pb.WatchRequest())
        assert (await node.remove(target)).phase == pb.BUSY
        os.kill(child, signal.SIGKILL)
        phases = []
        async for said in stream:
            if said.HasField("mount"):
                phases.append(said.mount.phase)
            if phases[-2:] == [pb.BUSY, pb.GRANTED]:
                break
        stream.cancel()
