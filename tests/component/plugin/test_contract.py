# SPDX-License-Identifier: Apache-2.0
"""Every call of the device plugin API, v1beta1, as the kubelet makes it."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from devicemount_node_api import deviceplugin_pb2 as pb
from devicemount_plugin import server
from devicemount_plugin.config import Resource
from devicemount_plugin.inventory import Inventory
from devicemount_plugin.registration import Registration
from unit.plugin.node_tree import NodeTree, cards

from .kubelet import DEADLINE_S, Kubelet, running_kubelet, wait_until

SPU = "moffett.ai/spu"
FUSE = "example.com/fuse"
SERIAL = "example.com/serial"
CARDS = [f"0000:3b:0{index}.0" for index in range(4)]
CONTROL = ("/dev/spuctl", "/dev/spuctl", "rw")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dp") as path:
        yield Path(path)


@pytest.fixture
def node(tmp_path: Path) -> NodeTree:
    node = NodeTree(tmp_path)
    assert list(cards(node, 4)) == CARDS
    node.plug("/dev/fuse")
    node.plug("/dev/spuctl")
    node.plug("/dev/ttyUSB0")
    node.link("/dev/serial/by-id/usb-modem", "../../ttyUSB0")
    return node


@asynccontextmanager
async def offered(node: NodeTree, directory: Path, **fields: object) -> AsyncIterator[Kubelet]:
    """Run the plugin for one resource with a kubelet that has listed it."""
    resource = Resource.model_validate(fields)
    inventory = Inventory(resource, root=node.root, reports=node.root)
    inventory.rescan()
    task = asyncio.create_task(Registration(inventory, directory=directory).keep())
    try:
        async with running_kubelet(directory) as kubelet:
            await wait_until(lambda: kubelet.listings.get(resource.name), what="it is listed")
            yield kubelet
    finally:
        task.cancel()
        await asyncio.wait([task])


def spus(node: NodeTree, directory: Path) -> AbstractAsyncContextManager[Kubelet]:
    pci = {"vendor": "1f36", "device": "7030"}
    return offered(node, directory, name=SPU, pci=pci, control=["/dev/spuctl"])


def nodes_of(response: pb.AllocateResponse) -> list[list[tuple[str, str, str]]]:
    return [
        [(spec.host_path, spec.container_path, spec.permissions) for spec in container.devices]
        for container in response.container_responses
    ]


async def refusal(kubelet: Kubelet, resource: str, *ids: str) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await kubelet.allocate(resource, list(ids))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    return str(caught.value.details())


async def test_list_and_watch_names_health_and_numa_node(node: NodeTree, directory: Path) -> None:
    async with spus(node, directory) as kubelet:
        assert kubelet.listings[SPU] == [dict.fromkeys(CARDS, "Healthy")]
        assert list(kubelet.numa_nodes[SPU].values()) == [[0], [0], [0], [1]]


async def test_a_device_on_no_numa_node_has_no_topology(node: NodeTree, directory: Path) -> None:
    nodes = {"paths": ["/dev/fuse"]}
    async with offered(node, directory, name=FUSE, nodes=nodes, replicas=3) as kubelet:
        assert kubelet.numa_nodes[FUSE] == {"fuse::0": [], "fuse::1": [], "fuse::2": []}


async def test_options_offer_a_preference(node: NodeTree, directory: Path) -> None:
    nodes = {"paths": ["/dev/fuse"]}
    async with offered(node, directory, name=FUSE, nodes=nodes) as kubelet:
        assert kubelet.options[FUSE].get_preferred_allocation_available
        assert not kubelet.options[FUSE].pre_start_required


async def test_preferred_allocation_stays_on_one_numa_node(node: NodeTree, directory: Path) -> None:
    async with spus(node, directory) as kubelet:
        assert await kubelet.prefer(SPU, CARDS, must=[], size=2) == CARDS[:2]
        assert await kubelet.prefer(SPU, CARDS, must=[CARDS[3]], size=2) == [CARDS[3], CARDS[0]]


async def test_each_container_gets_its_own_answer(node: NodeTree, directory: Path) -> None:
    async with spus(node, directory) as kubelet:
        response = await kubelet.allocate(SPU, CARDS[:2], [], CARDS[3:])
        assert nodes_of(response) == [
            [("/dev/spu0", "/dev/spu0", "rw"), ("/dev/spu1", "/dev/spu1", "rw"), CONTROL],
            [],
            [("/dev/spu3", "/dev/spu3", "rw"), CONTROL],
        ]


async def test_replicas_name_their_node_once(node: NodeTree, directory: Path) -> None:
    nodes = {"paths": ["/dev/fuse"]}
    async with offered(node, directory, name=FUSE, nodes=nodes, replicas=3) as kubelet:
        response = await kubelet.allocate(FUSE, ["fuse::0", "fuse::2"])
        assert nodes_of(response) == [[("/dev/fuse", "/dev/fuse", "rw")]]


async def test_a_link_is_given_under_its_name(node: NodeTree, directory: Path) -> None:
    nodes = {"glob": "/dev/serial/by-id/*"}
    async with offered(node, directory, name=SERIAL, nodes=nodes, access="r") as kubelet:
        (device,) = kubelet.listings[SERIAL][0]
        link = "/dev/serial/by-id/usb-modem"
        response = await kubelet.allocate(SERIAL, [device])
        assert nodes_of(response) == [[(link, link, "r")]]


async def test_a_renumbered_device_is_given_as_it_is_now(node: NodeTree, directory: Path) -> None:
    async with spus(node, directory) as kubelet:
        node.unplug("/dev/spu0")
        node.plug("/dev/renamed", "240:0")
        response = await kubelet.allocate(SPU, [CARDS[0]])
        assert nodes_of(response) == [[("/dev/renamed", "/dev/renamed", "rw"), CONTROL]]


async def test_a_device_that_is_not_there_is_not_given_away(
    node: NodeTree, directory: Path
) -> None:
    async with spus(node, directory) as kubelet:
        node.unplug("/dev/spu1")
        assert await refusal(kubelet, SPU, CARDS[0], CARDS[1]) == (
            f"{SPU}: device {CARDS[1]} cannot be given away: "
            f"PCI device {CARDS[1]} (1f36:7030) has no device node in /dev"
        )
        assert await refusal(kubelet, SPU, "unknown") == (
            f"{SPU}: device unknown cannot be given away: it is not known"
        )


async def test_a_driver_that_does_not_answer_holds_up_no_allocation(
    node: NodeTree, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REFRESH_TIMEOUT_S", 0.2)
    state = node.root / "sys/devices/pci0000:00" / CARDS[0] / "state"
    for card in CARDS:
        node.put(f"/sys/devices/pci0000:00/{card}/state", "up")
    fields = {"pci": {"vendor": "1f36"}, "health": [{"attribute": "state", "healthy": ["up"]}]}
    async with offered(node, directory, name=SPU, **fields) as kubelet:
        state.unlink()
        os.mkfifo(state)  # its reader waits for a writer
        try:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await kubelet.allocate(SPU, [CARDS[1]])
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == f"{SPU}: the node did not answer within 0.2 s"
        finally:
            state.open("w").close()


async def test_two_devices_at_one_path_are_refused(node: NodeTree, directory: Path) -> None:
    fields = {"pci": {"vendor": "1f36"}, "containerPath": "/dev/spu"}
    async with offered(node, directory, name=SPU, **fields) as kubelet:
        response = await kubelet.allocate(SPU, [CARDS[2]])
        assert nodes_of(response) == [[("/dev/spu2", "/dev/spu", "rw")]]
        assert await refusal(kubelet, SPU, *CARDS[:2]) == (
            f"{SPU}: two device nodes would be /dev/spu in the container: "
            "put {name} into the plugin's containerPath"
        )


async def test_pre_start_is_not_offered(node: NodeTree, directory: Path) -> None:
    async with spus(node, directory) as kubelet, kubelet.dial(kubelet.endpoints[SPU]) as plugin:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plugin.PreStartContainer(pb.PreStartContainerRequest(), timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
