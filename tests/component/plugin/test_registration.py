# SPDX-License-Identifier: Apache-2.0
"""The plugin against a kubelet's registration server: it registers, answers, and recovers."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from devicemount_plugin import registration
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
    inventory = Inventory(Resource.model_validate(resource), root=node.root, reports=node.root)
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


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect every refusal, and let the next attempt follow at once."""
    collected: list[str] = []
    report = Registration._report

    def collect(self: Registration, refusal: str) -> None:
        collected.append(refusal)
        report(self, refusal)

    monkeypatch.setattr(Registration, "_report", collect)
    monkeypatch.setattr(registration, "RETRY_S", 0.01)
    return collected


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]


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
    endpoints = []
    async with running_kubelet(directory) as kubelet:
        for _ in range(2):
            async with registering(gadgets, directory), asyncio.timeout(RESTORED_WITHIN_S):
                await listed(kubelet, GADGET)
                endpoints.append(kubelet.endpoints[GADGET])
            kubelet.listings.clear()
    first, second = endpoints
    assert first != second


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
    assert warnings(caplog) == [
        f"not registered resource={GADGET}: UNKNOWN: invalid name of device plugin socket"
    ]


async def test_a_directory_that_is_not_the_kubelets_is_said_once_with_its_volume(
    directory: Path, gadgets: Inventory, caplog: pytest.LogCaptureFixture, refusals: list[str]
) -> None:
    sentence = (
        f"no kubelet.sock in {directory}: the kubelet's socket belongs there; if it is elsewhere on"
        " this node, correct hostPath of the volume device-plugins of the plugin's DaemonSet;"
        " if its directory was made anew, delete this pod"
    )
    away = directory.with_suffix(".away")
    async with registering(gadgets, directory) as it:
        await wait_until(lambda: len(refusals) > 1, what="it has tried twice")
        directory.rename(away)
        before = len(refusals)
        await wait_until(lambda: len(refusals) > before + 1, what="it goes on trying")
        away.rename(directory)
        assert it.refusal == sentence
        assert warnings(caplog) == [f"not registered resource={GADGET}: {sentence}"]
        async with running_kubelet(directory) as kubelet:
            await listed(kubelet, GADGET)
            assert it.refusal == ""


async def test_a_directory_in_which_nothing_can_listen_ends_nothing(
    directory: Path,
    gadgets: Inventory,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    refusals: list[str],
) -> None:
    """Root may write anywhere: here the name is too long for a socket."""
    deep = directory / ("x" * (90 - len(str(directory))))
    deep.mkdir()
    async with running_kubelet(deep) as kubelet, registering(gadgets, deep):
        await wait_until(lambda: len(refusals) > 1, what="it has tried twice")
        assert warnings(caplog) == [
            f"not registered resource={GADGET}: cannot listen in {deep}: AF_UNIX path too long"
        ]
        monkeypatch.setattr(registration, "NAME_LENGTH", 1)
        await listed(kubelet, GADGET)


def listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


async def test_what_a_killed_plugin_has_left_is_removed(
    directory: Path, gadgets: Inventory
) -> None:
    dead = [f"example.com_gadget-{'0' * 8}.sock", "example.com_gadgets-00000000.sock", "a.sock"]
    living = f"example.com_gadget-{'1' * 8}.sock"
    async with running_kubelet(directory) as kubelet:
        for name in dead:
            listening(directory / name).close()
        other = listening(directory / living)
        with other:
            async with registering(gadgets, directory):
                await listed(kubelet, GADGET)
        left = {path.name for path in directory.iterdir()}
    assert left == {"kubelet.sock", living, *dead[1:]}


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
