# SPDX-License-Identifier: Apache-2.0
"""The plugin against a kubelet's registration server: it registers, answers, and recovers."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from devicemount_plugin.config import Nodes, Resource
from devicemount_plugin.inventory import Inventory
from devicemount_plugin.registration import Registration

from .kubelet import Kubelet, running_kubelet, wait_until

GADGET = "example.com/gadget"
SHARED = "example.com/shared"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dp") as path:
        yield Path(path)


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    dev = tmp_path / "dev"
    dev.mkdir()
    for name in ("gadget0", "gadget1", "shared"):
        (dev / name).symlink_to("/dev/null")
    return dev


@pytest.fixture
def gadgets(dev: Path) -> Inventory:
    nodes = Nodes(glob="/dev/gadget*")
    return Inventory(Resource(name=GADGET, nodes=nodes), root=dev.parent)


@pytest.fixture
def shared(dev: Path) -> Inventory:
    nodes = Nodes(paths=["/dev/shared"])
    return Inventory(Resource(name=SHARED, nodes=nodes, replicas=3), root=dev.parent)


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


def nodes_of(response: object) -> list[list[tuple[str, str, str]]]:
    return [
        [(spec.host_path, spec.container_path, spec.permissions) for spec in container.devices]
        for container in response.container_responses
    ]


async def test_it_registers_and_lists_its_devices(directory: Path, gadgets: Inventory) -> None:
    async with running_kubelet(directory) as kubelet, registering(gadgets, directory) as it:
        await listed(kubelet, GADGET)
        assert it.is_current()
        assert kubelet.listings[GADGET] == [{"gadget0": "Healthy", "gadget1": "Healthy"}]


async def test_the_full_list_is_sent_on_change_only(
    directory: Path, gadgets: Inventory, dev: Path
) -> None:
    async with running_kubelet(directory) as kubelet, registering(gadgets, directory):
        await listed(kubelet, GADGET)
        gadgets.rescan()
        (dev / "gadget1").unlink()
        gadgets.rescan()
        await wait_until(lambda: len(kubelet.listings[GADGET]) > 1, what="the change is listed")
        assert kubelet.listings[GADGET] == [
            {"gadget0": "Healthy", "gadget1": "Healthy"},
            {"gadget0": "Healthy", "gadget1": "Unhealthy"},
        ]


async def test_each_container_gets_its_own_response(directory: Path, gadgets: Inventory) -> None:
    async with running_kubelet(directory) as kubelet, registering(gadgets, directory):
        await listed(kubelet, GADGET)
        response = await kubelet.allocate(GADGET, ["gadget1"], [], ["gadget0"])
        assert nodes_of(response) == [
            [("/dev/gadget1", "/dev/gadget1", "rw")],
            [],
            [("/dev/gadget0", "/dev/gadget0", "rw")],
        ]


async def test_replicas_name_their_node_once(directory: Path, shared: Inventory) -> None:
    async with running_kubelet(directory) as kubelet, registering(shared, directory):
        await listed(kubelet, SHARED)
        assert list(kubelet.listings[SHARED][0]) == ["shared::0", "shared::1", "shared::2"]
        response = await kubelet.allocate(SHARED, ["shared::0", "shared::2"])
        assert nodes_of(response) == [[("/dev/shared", "/dev/shared", "rw")]]


@pytest.mark.parametrize("device", ["gadget1", "unknown"])
async def test_a_device_that_is_not_there_is_not_given_away(
    directory: Path, gadgets: Inventory, dev: Path, device: str
) -> None:
    async with running_kubelet(directory) as kubelet, registering(gadgets, directory):
        await listed(kubelet, GADGET)
        (dev / "gadget1").unlink()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await kubelet.allocate(GADGET, ["gadget0", device])
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details() == f"{GADGET}: device {device} is not there"


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
        async with running_kubelet(directory) as second:
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
        await wait_until(lambda: kubelet.endpoints[GADGET] != endpoint, what="a new registration")
        await listed(kubelet, GADGET)


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
