# SPDX-License-Identifier: Apache-2.0
"""What the configurations that we ship make of a node."""

from collections.abc import Callable
from pathlib import Path

import pytest

from devicemount_plugin.config import read_config
from devicemount_plugin.health import Health
from devicemount_plugin.inventory import Inventory

from .node_tree import NodeTree, cards

SHIPPED = Path(__file__).parents[3] / "manifests/plugin-configs"
NAMES = sorted(folder.name for folder in SHIPPED.iterdir())
FTDI = "USB device 0403:6001 at port 1-2"


def of(node: NodeTree, name: str) -> Inventory:
    (resource,) = read_config(SHIPPED / name / f"{name}.yaml").resources
    inventory = Inventory(resource, root=node.root, reports=node.root)
    inventory.rescan()
    return inventory


def given(inventory: Inventory) -> dict[str, tuple[str, ...]]:
    """Return the nodes of each device that may be given away."""
    healthy = {one for one, health in inventory.listing.items() if health is Health.HEALTHY}
    states = {one: inventory.find(one) for one in healthy}
    return {one: state.device.nodes for one, state in states.items() if state is not None}


def shares(name: str, path: str) -> dict[str, tuple[str, ...]]:
    return {f"{name}::{number}": (path,) for number in range(64)}


def adapter(node: NodeTree) -> None:
    directory = node.add_usb("1-2", "0403:6001", serial="A1")
    node.register("189:3", directory, name="")
    node.plug("/dev/bus/usb/001/003", "189:3")
    node.register("188:0", directory / "1-2:1.0", name="ttyUSB0/tty/ttyUSB0")
    node.plug("/dev/ttyUSB0", "188:0")
    node.link("/dev/serial/by-id/usb-FTDI_A1", "../../ttyUSB0")


def three_cards(node: NodeTree) -> None:
    list(cards(node, 3))
    node.register("240:255", "spu", name="spuctl")
    node.plug("/dev/spuctl", "240:255")
    other = node.add_pci("0000:3b:07.0", "1f36:7040", driver="spu")  # another model
    node.register("240:7", other, name="spu/spu7")
    node.plug("/dev/spu7", "240:7")
    node.add_pci("0000:3a:00.0", "1f36:0001")  # what nobody drives
    node.add_pci("0000:39:00.0", "1f36:0002", driver="pcieport")  # what has no node


@pytest.mark.parametrize(
    ("name", "prepare", "expected"),
    [
        ("fuse", lambda node: node.plug("/dev/fuse"), shares("fuse", "/dev/fuse")),
        ("kvm", lambda node: node.plug("/dev/kvm"), shares("kvm", "/dev/kvm")),
        ("tun", lambda node: node.plug("/dev/net/tun"), shares("net-tun", "/dev/net/tun")),
        (
            "serial",
            adapter,
            {"serial-by-id-usb-FTDI_A1": ("/dev/serial/by-id/usb-FTDI_A1",)},
        ),
        ("usb", adapter, {"0403-6001-A1": ("/dev/ttyUSB0",)}),
        (
            "moffett-spu",
            three_cards,
            {f"0000:3b:0{index}.0": (f"/dev/spu{index}",) for index in (0, 1, 2, 7)},
        ),
    ],
)
def test_what_is_there_is_offered(
    node: NodeTree,
    name: str,
    prepare: Callable[[NodeTree], None],
    expected: dict[str, tuple[str, ...]],
) -> None:
    prepare(node)
    inventory = of(node, name)
    assert (given(inventory), inventory.missing) == (expected, "")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_there_is_missed_where_every_node_has_it(node: NodeTree, name: str) -> None:
    inventory = of(node, name)
    assert inventory.listing == {}
    said = f"no device of devicemount.io/{name} is there, and the plugin expects one"
    assert inventory.missing == (said if name in ("fuse", "kvm", "tun") else "")


def test_cards_of_any_model_share_the_drivers_own_node(node: NodeTree) -> None:
    three_cards(node)
    spus = of(node, "moffett-spu")
    states = [spus.find(one) for one in spus.listing]
    assert [state and state.device.control for state in states] == [("/dev/spuctl",)] * 4


def test_an_adapter_without_its_driver_is_not_offered_and_said(node: NodeTree) -> None:
    adapter(node)
    node.unplug("/dev/ttyUSB0", "/sys/dev/char/188:0")
    usb = of(node, "usb")
    assert (usb.listing, usb.missing) == ({}, f"{FTDI} has no device node /dev/ttyUSB*")


def test_an_adapter_that_loses_its_driver_is_unhealthy(node: NodeTree) -> None:
    adapter(node)
    usb = of(node, "usb")
    node.unplug("/dev/ttyUSB0", "/sys/dev/char/188:0")
    assert usb.rescan() == {"0403-6001-A1": Health.UNHEALTHY}
