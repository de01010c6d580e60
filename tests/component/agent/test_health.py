# SPDX-License-Identifier: Apache-2.0
"""A granted device that turns unhealthy is said; one whose file goes is withheld, and granted again
when it is back, whatever its number is then.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.journal import Journal
from devicemount_agent_api.v1 import agent_pb2 as pb
from devicemount_node_api import deviceplugin_pb2

from .conftest import DEADLINE_S, RESOURCE, Node, Shadow, Target
from .test_mount import until

VCSU, VCSA = (7, 64), (7, 128)  # devices that the testbed gives to nobody
ID = "card-0"
READY = "/run/devicemount/notebook-gpu.ready"


@dataclass
class Card:
    """A device of the node whose file the test makes and removes."""

    path: Path

    def plug(self, number: tuple[int, int]) -> None:
        os.mknod(self.path, 0o20666, os.makedev(*number))

    def unplug(self) -> None:
        self.path.unlink()


@pytest.fixture
def card() -> Iterator[Card]:
    made = Card(Path(f"/dev/devicemount-test-{os.getpid()}"))
    made.plug(VCSU)
    yield made
    made.path.unlink(missing_ok=True)


def reserved(node: Node, target: Target, card: Card) -> Shadow:
    shadow = node.shadow(target)
    spec = deviceplugin_pb2.DeviceSpec(
        host_path=str(card.path), container_path="/dev/card", permissions="rw"
    )
    answer = deviceplugin_pb2.ContainerAllocateResponse(devices=[spec])
    node.kubelet.healthy(RESOURCE, ID, "card-1")
    node.kubelet.choose(shadow.pod, RESOURCE, {ID: []}, answer=answer)
    return shadow


async def said(node: Node, is_it: Callable[[pb.ShadowState], bool]) -> pb.ShadowState:
    """Wait until the node's only shadow pod is said to be so."""
    async with asyncio.timeout(2 * DEADLINE_S):
        while True:
            (state,) = await node.states()
            (shadow,) = state.shadow_pods
            if is_it(shadow):
                return shadow
            await asyncio.sleep(0.02)


def health(shadow: pb.ShadowState) -> str:
    return shadow.devices[0].health


def number(shadow: pb.ShadowState) -> tuple[int, int]:
    (of_node,) = shadow.devices[0].nodes
    return of_node.major, of_node.minor


def is_back(shadow: pb.ShadowState) -> bool:
    is_granted = shadow.phase == pb.GRANTED and not shadow.concerns
    return is_granted and number(shadow) == VCSA


def can_open(target: Target) -> bool:
    return target.box.inside.can_open("/dev/card")


def allowed(target: Target, device: tuple[int, int]) -> bool:
    """Tell whether the container may open a number, whatever file it has."""
    path = target.box.root / "dev/probe"
    os.mknod(path, 0o20666, os.makedev(*device))
    try:
        return target.box.inside.can_open("/dev/probe")
    finally:
        path.unlink()


async def test_an_unhealthy_device_is_said_and_kept(node: Node, card: Card) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, reserved(node, target, card))
        await said(node, lambda shadow: health(shadow) == "Healthy" and not shadow.concerns)

        node.kubelet.healthy(RESOURCE, "card-1")

        shadow = await said(node, lambda shadow: health(shadow) == "Unhealthy")
        (concern,) = shadow.concerns
        assert concern.reason == "DeviceUnhealthy"
        assert concern.message.startswith(f"{RESOURCE} {ID}: its device plugin says")
        assert shadow.phase == pb.GRANTED
        assert can_open(target)
        node.kubelet.healthy(RESOURCE, ID, "card-1")
        await said(node, lambda shadow: health(shadow) == "Healthy" and not shadow.concerns)


async def test_without_any_healthy_device_it_is_said_after_a_moment(node: Node, card: Card) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, reserved(node, target, card))
        await said(node, lambda shadow: health(shadow) == "Healthy")
        node.kubelet.healthy(RESOURCE)
        await said(node, lambda shadow: health(shadow) == "Unhealthy")
        node.kubelet.registered.clear()
        node.kubelet.write()
        await said(node, lambda shadow: health(shadow) == "Unknown" and not shadow.concerns)


async def test_a_plugin_that_ended_makes_its_devices_unhealthy(node: Node, card: Card) -> None:
    """The kubelet does not write that into its checkpoint."""
    target = node.target()
    async with node.agent():
        await node.apply(target, reserved(node, target, card))
        await said(node, lambda shadow: health(shadow) == "Healthy")
        node.kubelet.ended.add(RESOURCE)
        await said(node, lambda shadow: health(shadow) == "Unhealthy")
        assert can_open(target)
        node.kubelet.ended.clear()
        await said(node, lambda shadow: health(shadow) == "Healthy" and not shadow.concerns)


async def test_a_device_that_comes_back_as_another_number_is_granted_again(
    node: Node, card: Card
) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, reserved(node, target, card))
        assert can_open(target)

        card.unplug()
        node.kubelet.healthy(RESOURCE, "card-1")

        shadow = await said(node, lambda shadow: "is not there" in str(shadow.concerns))
        await until(lambda: not (target.box.root / "dev/card").exists(), "the file is gone")
        assert not (target.box.root / READY.lstrip("/")).exists()
        assert not allowed(target, VCSU)
        assert shadow.phase == pb.GRANTED

        card.plug(VCSA)
        assert not allowed(target, VCSA)
        node.kubelet.healthy(RESOURCE, ID, "card-1")

        shadow = await said(node, is_back)
        assert shadow.devices[0].id == ID
        assert can_open(target)
        assert allowed(target, VCSA)
        assert not allowed(target, VCSU)
        assert (target.box.root / READY.lstrip("/")).exists()
        assert (await node.remove(target)).phase == pb.REMOVED
        assert not allowed(target, VCSA)
        assert not (target.box.root / "dev/card").exists()


async def test_a_path_that_is_another_devices_is_not_open_meanwhile(node: Node, card: Card) -> None:
    """The number is another one, and the kubelet does not call the device healthy."""
    target = node.target()
    async with node.agent():
        await node.apply(target, reserved(node, target, card))
        card.unplug()
        card.plug(VCSA)
        node.kubelet.healthy(RESOURCE, "card-1")
        await said(node, lambda shadow: "access is withheld" in str(shadow.concerns))
        await until(lambda: not allowed(target, VCSU), "access is gone")
        assert not allowed(target, VCSA)


async def test_who_has_a_vanished_device_open_keeps_it_reserved(node: Node, card: Card) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, reserved(node, target, card))
        fd = target.box.inside.open("/dev/card")
        card.unplug()
        node.kubelet.healthy(RESOURCE, "card-1")
        await said(node, lambda shadow: "is not there" in str(shadow.concerns))
        assert (await node.remove(target)).phase == pb.BUSY
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED


async def test_what_is_withheld_stays_so_over_a_restart_of_the_agent(
    node: Node, card: Card
) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, reserved(node, target, card))
        card.unplug()
        node.kubelet.healthy(RESOURCE, "card-1")
        await said(node, lambda shadow: "is not there" in str(shadow.concerns))
    async with node.agent():
        assert not allowed(target, VCSU)
        card.plug(VCSA)
        node.kubelet.healthy(RESOURCE, ID, "card-1")
        await said(node, is_back)
        assert can_open(target)
        assert (await node.remove(target)).phase == pb.REMOVED


async def test_a_device_that_went_while_no_agent_ran_is_withheld_at_the_start(
    node: Node, card: Card
) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, reserved(node, target, card))
    card.unplug()
    async with node.agent():
        await said(node, lambda shadow: "is not there" in str(shadow.concerns))
        await until(lambda: not allowed(target, VCSU), "access is gone")


async def test_ready_goes_when_one_of_several_devices_is_withheld(node: Node, card: Card) -> None:
    target = node.target()
    other = node.reserved(target, "vcs1", ordinal=1)
    ready = target.box.root / READY.lstrip("/")
    async with node.agent():
        await node.apply(target, reserved(node, target, card), other)
        assert ready.exists()
        card.unplug()
        node.kubelet.healthy(RESOURCE, "card-1", "vcs1")
        await until(lambda: not ready.exists(), "the ready file is gone")
        assert target.box.inside.can_open("/dev/vcs1")
        card.plug(VCSA)
        node.kubelet.healthy(RESOURCE, ID, "card-1", "vcs1")
        await until(ready.exists, "the ready file is back")
        assert can_open(target)


async def test_what_is_withheld_is_so_also_where_the_journal_cannot_be_written(
    node: Node, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, reserved(node, target, card))

        def full(*_: object) -> None:
            raise NodeUnavailable("no space left")

        monkeypatch.setattr(Journal, "_write", full)
        card.unplug()
        node.kubelet.healthy(RESOURCE, "card-1")
        await until(lambda: not allowed(target, VCSU), "access is gone")
        await said(node, lambda shadow: shadow.phase == pb.WAITING)
