# SPDX-License-Identifier: Apache-2.0
"""The plugin against a kubelet's registration server: it registers, answers, and recovers."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from devicemount_plugin.config import Resource
from devicemount_plugin.inventory import Inventory
from devicemount_plugin.registration import Registration
from unit.plugin.node_tree import NodeTree

from .kubelet import Kubelet, running_kubelet, wait_until

GADGET = "example.com/gadget"
RESTORED_WITHIN_S = 2.0


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dp") as path:
        yield Path(path)


@pytest.fixture
def node(tmp_path: Path) -> NodeTree:
    node = NodeTree(tmp_path)
    node.plug("/dev/gadget0")
    node.plug("/dev/gadget1")
    return node


@pytest.fixture
def gadgets(node: NodeTree) -> Inventory:
    resource = {"name": GADGET, "nodes": {"glob": "/dev/gadget*"}}
    inventory = Inventory(Resource.model_validate(resource), root=node.root)
    inventory.rescan()
    return inventory


@asynccontextmanager
async def registering(inventory: Inventory, directory: Path) -> AsyncIterator[Registration]:
    registration = Registration(inventory, directory=directory)
    task = asyncio.create_task(registration.keep())
    try:
        yield registration
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def listed(kubelet: Kubelet, resource: str) -> None:
    await wait_until(lambda: kubelet.listings.get(resource), what=f"{resource} is listed")


async def test_it_registers_and_lists_its_devices(directory: Path, gadgets: Inventory) -> None:
    async with running_kubelet(directory) as kubelet, registering(gadgets, directory) as it:
        await listed(kubelet, GADGET)
        assert it.is_current()
        assert kubelet.listings[GADGET] == [{"gadget0": "Healthy", "gadget1": "Healthy"}]


async def test_the_full_list_is_sent_on_change_only(
    directory: Path, gadgets: Inventory, node: NodeTree
) -> None:
    async with running_kubelet(directory) as kubelet, registering(gadgets, directory):
        await listed(kubelet, GADGET)
        gadgets.rescan()
        node.unplug("/dev/gadget1")
        gadgets.rescan()
        await wait_until(lambda: len(kubelet.listings[GADGET]) > 1, what="the change is listed")
        assert kubelet.listings[GADGET] == [
            {"gadget0": "Healthy", "gadget1": "Healthy"},
            {"gadget0": "Healthy", "gadget1": "Unhealthy"},
        ]


async def test_it_waits_for_a_kubelet_that_starts_later(
    directory: Path, gadgets: Inventory, caplog: pytest.LogCaptureFixture
) -> None:
    async with registering(gadgets, directory) as it:
        await wait_until(lambda: caplog.messages, what="the absence is logged")
        assert not it.is_current()
        async with running_kubelet(directory) as kubelet:
            await listed(kubelet, GADGET)
            assert it.is_current()


async def test_it_registers_anew_with_a_restarted_kubelet(
    directory: Path, gadgets: Inventory
) -> None:
    async with registering(gadgets, directory) as it:
        async with running_kubelet(directory) as first:
            await listed(first, GADGET)
        await wait_until(lambda: not it.is_current(), what="the loss is noticed")
        async with running_kubelet(directory) as second, asyncio.timeout(RESTORED_WITHIN_S):
            await listed(second, GADGET)
            await wait_until(it.is_current, what="it is registered again")
        assert first.endpoints[GADGET] != second.endpoints[GADGET]


async def test_it_registers_anew_when_its_socket_is_removed(
    directory: Path, gadgets: Inventory
) -> None:
    async with running_kubelet(directory) as kubelet, registering(gadgets, directory):
        await listed(kubelet, GADGET)
        endpoint = kubelet.endpoints[GADGET]
        (directory / endpoint).unlink()
        async with asyncio.timeout(RESTORED_WITHIN_S):
            await wait_until(
                lambda: kubelet.endpoints[GADGET] != endpoint, what="a new registration"
            )
            await listed(kubelet, GADGET)


async def test_a_restarted_plugin_registers_with_the_same_kubelet(
    directory: Path, gadgets: Inventory
) -> None:
    async with running_kubelet(directory) as kubelet:
        for _ in range(2):
            async with registering(gadgets, directory), asyncio.timeout(RESTORED_WITHIN_S):
                await listed(kubelet, GADGET)
                first = kubelet.endpoints[GADGET]
            kubelet.listings.clear()
        assert kubelet.endpoints == {GADGET: first}


async def test_it_registers_anew_when_the_kubelet_ends_its_stream(
    directory: Path, gadgets: Inventory
) -> None:
    async with running_kubelet(directory) as kubelet, registering(gadgets, directory):
        await listed(kubelet, GADGET)
        endpoint = kubelet.endpoints[GADGET]
        await kubelet.drop(GADGET)
        await wait_until(lambda: kubelet.endpoints[GADGET] != endpoint, what="a new registration")
        await listed(kubelet, GADGET)


async def test_a_refusal_is_logged_once_and_tried_again(
    directory: Path, gadgets: Inventory, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_kubelet(directory) as kubelet:
        kubelet.refuse_with = "invalid name of device plugin socket"
        async with registering(gadgets, directory) as it:
            await wait_until(lambda: caplog.messages, what="the refusal is logged")
            assert not it.is_current()
            kubelet.refuse_with = None
            await listed(kubelet, GADGET)
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert warnings == [
        f"not registered resource={GADGET}: UNKNOWN: invalid name of device plugin socket"
    ]


async def test_it_leaves_no_socket_behind(directory: Path, gadgets: Inventory) -> None:
    async with running_kubelet(directory) as kubelet:
        async with registering(gadgets, directory):
            await listed(kubelet, GADGET)
        assert [path.name for path in directory.iterdir()] == ["kubelet.sock"]


async def test_it_can_be_told_to_end_at_any_moment_of_its_start(
    directory: Path, gadgets: Inventory
) -> None:
    """`registering` asserts that nothing but the cancellation ends it."""
    async with running_kubelet(directory) as kubelet:
        for steps in range(60):
            async with registering(gadgets, directory):
                for _ in range(steps % 20):
                    await asyncio.sleep(0)
        async with registering(gadgets, directory):
            await listed(kubelet, GADGET)
