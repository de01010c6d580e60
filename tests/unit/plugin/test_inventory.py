# SPDX-License-Identifier: Apache-2.0
"""What the kubelet is told: each device once offered, its health, and only changes."""

import asyncio
import shutil
import threading

import pytest

from devicemount_plugin import inventory as module
from devicemount_plugin.config import DeviceID, Resource
from devicemount_plugin.discovery import discover
from devicemount_plugin.health import Health
from devicemount_plugin.inventory import Inventory

from .node_tree import NodeTree, cards

HEALTHY, UNHEALTHY = Health.HEALTHY, Health.UNHEALTHY
SPU = {"pci": {"vendor": "1f36", "device": "7030"}}
STICK = {"usb": {"vendor": "0403", "product": "6001"}}
BY_ID = {"nodes": {"glob": "/dev/serial/by-id/*"}}


def of(node: NodeTree, **source: object) -> Inventory:
    resource = Resource.model_validate({"name": "example.com/gadget", **source})
    inventory = Inventory(resource, root=node.root, reports=node.root)
    inventory.rescan()
    return inventory


@pytest.fixture
def inventory(node: NodeTree) -> Inventory:
    node.plug("/dev/gadget0")
    node.plug("/dev/gadget1")
    return of(node, nodes={"glob": "/dev/gadget*"})


def test_what_is_present_at_the_start_is_healthy(inventory: Inventory) -> None:
    assert inventory.listing == {"gadget0": HEALTHY, "gadget1": HEALTHY}


def test_a_device_that_goes_is_unhealthy_and_comes_back_under_its_id(
    inventory: Inventory, node: NodeTree
) -> None:
    node.unplug("/dev/gadget1")
    assert inventory.rescan() == {"gadget0": HEALTHY, "gadget1": UNHEALTHY}
    node.plug("/dev/gadget1", "242:99")
    assert inventory.rescan() == {"gadget0": HEALTHY, "gadget1": HEALTHY}


def test_a_device_that_comes_later_is_added(inventory: Inventory, node: NodeTree) -> None:
    node.plug("/dev/gadget7")
    assert set(inventory.rescan()) == {"gadget0", "gadget1", "gadget7"}


@pytest.mark.parametrize(
    ("replicas", "ids"),
    [
        pytest.param(1, ["fuse"], id="one replica keeps the plain name"),
        pytest.param(3, ["fuse::0", "fuse::1", "fuse::2"], id="replicas are numbered from 0"),
    ],
)
def test_replicas_share_a_device(node: NodeTree, replicas: int, ids: list[str]) -> None:
    node.plug("/dev/fuse")
    fuse = of(node, nodes={"paths": ["/dev/fuse"]}, replicas=replicas)
    assert list(fuse.listing) == ids
    for one in ids:
        state = fuse.find(DeviceID(one))
        assert state is not None
        assert state.device.id == "fuse"
    assert fuse.find(DeviceID("fuse::9")) is None


def test_a_device_that_is_gone_is_found_with_the_reason(
    inventory: Inventory, node: NodeTree
) -> None:
    node.unplug("/dev/gadget1")
    inventory.rescan()
    state = inventory.find(DeviceID("gadget1"))
    assert state is not None
    assert [fault.text for fault in state.faults] == ["/dev/gadget1 is gone"]
    assert inventory.find(DeviceID("unknown")) is None


async def test_listings_come_once_and_then_on_change_only(
    inventory: Inventory, node: NodeTree
) -> None:
    listings = inventory.listings()
    assert await anext(listings) == {"gadget0": HEALTHY, "gadget1": HEALTHY}
    following = asyncio.ensure_future(anext(listings))
    await inventory.refresh()
    await asyncio.sleep(0)
    assert not following.done()
    node.unplug("/dev/gadget0")
    await inventory.refresh()
    assert await following == {"gadget0": UNHEALTHY, "gadget1": HEALTHY}


async def test_a_change_between_two_listings_is_not_lost(
    inventory: Inventory, node: NodeTree
) -> None:
    listings = inventory.listings()
    await anext(listings)
    node.unplug("/dev/gadget0")
    inventory.rescan()
    node.unplug("/dev/gadget1")
    inventory.rescan()
    latest = await asyncio.wait_for(anext(listings), 1)
    assert latest == {"gadget0": UNHEALTHY, "gadget1": UNHEALTHY}


def test_a_card_without_driver_is_not_offered_and_said_to_lack_it(node: NodeTree) -> None:
    directory = node.add_pci("0000:3b:00.0", "1f36:7030")
    spu = of(node, **SPU)
    assert (spu.listing, spu.lacking) == ({}, 1)
    assert spu.missing == (
        "no driver is bound to PCI device 0000:3b:00.0 (1f36:7030);"
        " PCI device 0000:3b:00.0 (1f36:7030) has no device node in /dev"
    )
    node.bind(directory, "spu")
    node.register("240:0", directory, name="spu/spu0")
    node.plug("/dev/spu0", "240:0")
    assert spu.rescan() == {"0000:3b:00.0": HEALTHY}
    assert (spu.missing, spu.lacking) == ("", 0)


def test_without_a_control_node_no_device_is_offered(node: NodeTree) -> None:
    list(cards(node, 2))
    spu = of(node, **SPU, control=["/dev/spuctl"])
    assert spu.listing == {}
    assert (spu.missing, spu.lacking) == ("the control node /dev/spuctl is absent", 2)


def test_one_card_that_lacks_its_node_does_not_stand_in_the_way_of_others(node: NodeTree) -> None:
    list(cards(node, 2))
    node.unplug("/dev/spu1")
    spu = of(node, **SPU)
    assert spu.listing == {"0000:3b:00.0": HEALTHY}
    assert (spu.missing, spu.lacking) == ("", 1)


@pytest.mark.parametrize("what", ["node", "driver", "card"])
def test_a_card_that_was_offered_stays_and_recovers_under_its_id(node: NodeTree, what: str) -> None:
    (address,) = cards(node, 1)
    spu = of(node, **SPU)
    entry = node.root / "sys/bus/pci/devices" / address
    if what == "node":
        node.unplug("/dev/spu0")
    elif what == "driver":
        (entry / "driver").unlink()
    else:
        card = entry.readlink()
        entry.unlink()
    assert spu.rescan() == {address: UNHEALTHY}
    if what == "node":
        (node.root / "sys/dev/char/240:0").rename(node.root / "sys/dev/char/240:77")
        node.plug("/dev/spu0", "240:77")
    elif what == "driver":
        node.bind(entry, "spu")
    else:
        entry.symlink_to(card)
    assert spu.rescan() == {address: HEALTHY}


def test_a_link_that_comes_does_not_rename_the_device_that_is_there(node: NodeTree) -> None:
    node.plug("/dev/ttyUSB0")
    node.link("/dev/serial/by-path/usbv2", "../../ttyUSB0")
    serial = of(node, nodes={"glob": "/dev/serial/by-path/*"})
    node.link("/dev/serial/by-path/usb", "../../ttyUSB0")
    assert serial.rescan() == {"serial-by-path-usbv2": HEALTHY}


def test_a_link_that_goes_does_not_rename_the_device_that_is_there(node: NodeTree) -> None:
    """Under another link's name it would be free, and be given away twice."""
    node.plug("/dev/ttyUSB0")
    node.link("/dev/serial/by-id/a", "../../ttyUSB0")
    node.link("/dev/serial/by-id/b", "../../ttyUSB0")
    serial = of(node, **BY_ID)
    node.unplug("/dev/serial/by-id/a")
    assert serial.rescan() == {"serial-by-id-a": HEALTHY}
    assert found_at(serial, "serial-by-id-a") == ("/dev/serial/by-id/b",)
    assert of(node, **BY_ID).listing == {"serial-by-id-a": HEALTHY}
    node.link("/dev/serial/by-id/a", "../../ttyUSB0")
    assert serial.rescan() == {"serial-by-id-a": HEALTHY}
    assert found_at(serial, "serial-by-id-a") == ("/dev/serial/by-id/a",)


def test_a_configuration_that_names_a_device_otherwise_does_not_rename_it(node: NodeTree) -> None:
    node.plug("/dev/ttyUSB0")
    node.link("/dev/serial/by-id/a", "../../ttyUSB0")
    of(node, nodes={"glob": "/dev/ttyUSB*"})
    serial = of(node, **BY_ID)
    assert serial.listing == {"ttyUSB0": HEALTHY}
    assert found_at(serial, "ttyUSB0") == ("/dev/serial/by-id/a",)
    assert of(node, **BY_ID).listing == {"ttyUSB0": HEALTHY}


def test_a_restarted_plugin_renames_nothing_that_is_not_complete_yet(node: NodeTree) -> None:
    node.plug("/dev/ttyUSB0")
    node.plug("/dev/control")
    for name in "ab":
        node.link(f"/dev/serial/by-id/{name}", "../../ttyUSB0")
    of(node, **BY_ID, control=["/dev/control"])
    node.unplug("/dev/control")
    serial = of(node, **BY_ID, control=["/dev/control"])
    assert serial.listing == {}
    node.unplug("/dev/serial/by-id/a")
    serial.rescan()
    node.plug("/dev/control")
    assert serial.rescan() == {"serial-by-id-a": HEALTHY}


def test_a_link_that_leads_elsewhere_takes_no_id_along(node: NodeTree) -> None:
    for number, name in enumerate("ba"):
        node.plug(f"/dev/ttyUSB{number}")
        node.link(f"/dev/serial/by-id/{name}", f"../../ttyUSB{number}")
    serial = of(node, **BY_ID)
    node.unplug("/dev/serial/by-id/a")
    node.link("/dev/serial/by-id/a", "../../ttyUSB0")  # whose id is b
    assert serial.rescan() == {"serial-by-id-a": UNHEALTHY, "serial-by-id-b": HEALTHY}


def test_a_link_that_comes_back_for_another_device_gets_another_id(node: NodeTree) -> None:
    node.plug("/dev/ttyUSB0")
    for name in "ab":
        node.link(f"/dev/serial/by-id/{name}", "../../ttyUSB0")
    serial = of(node, **BY_ID)
    node.plug("/dev/ttyUSB1")
    node.unplug("/dev/serial/by-id/a")
    node.link("/dev/serial/by-id/a", "../../ttyUSB1")
    (other,) = serial.rescan().keys() - {"serial-by-id-a"}
    assert found_at(serial, "serial-by-id-a") == ("/dev/serial/by-id/b",)
    assert found_at(serial, other) == ("/dev/serial/by-id/a",)
    node.unplug("/dev/serial/by-id/b", "/dev/ttyUSB0")
    assert serial.rescan() == {"serial-by-id-a": UNHEALTHY, other: HEALTHY}


def test_another_device_of_the_same_number_is_not_taken_for_the_one_before(node: NodeTree) -> None:
    node.plug("/dev/ttyUSB0", "188:0")
    node.link("/dev/serial/by-id/a", "../../ttyUSB0")
    node.link("/dev/serial/by-path/port", "../../ttyUSB0")
    serial = of(node, nodes={"glob": "/dev/serial/*/*"})
    node.unplug("/dev/ttyUSB0", "/dev/serial/by-id/a", "/dev/serial/by-path/port")
    assert serial.rescan() == {"serial-by-id-a": UNHEALTHY}
    node.plug("/dev/ttyUSB0", "188:0")
    node.link("/dev/serial/by-id/b", "../../ttyUSB0")
    node.link("/dev/serial/by-path/port", "../../ttyUSB0")
    assert serial.rescan() == {"serial-by-id-a": UNHEALTHY, "serial-by-id-b": HEALTHY}


def test_a_path_that_gives_the_id_of_another_gets_an_id_of_its_own(node: NodeTree) -> None:
    node.plug("/dev/a/b")
    both = {"nodes": {"paths": ["/dev/a-b", "/dev/a/b"]}}
    gadgets = of(node, **both)
    node.plug("/dev/a-b")
    assert gadgets.rescan()[DeviceID("a-b")] is HEALTHY
    assert found_at(gadgets, "a-b") == ("/dev/a/b",)
    (other,) = gadgets.listing.keys() - {"a-b"}
    assert found_at(gadgets, other) == ("/dev/a-b",)
    node.unplug("/dev/a/b")
    assert gadgets.rescan() == {"a-b": UNHEALTHY, other: HEALTHY}
    assert of(node, **both).listing == {other: HEALTHY}


def test_a_restarted_plugin_does_not_rename_a_usb_device_that_has_a_twin(node: NodeTree) -> None:
    stick(node, "1-2", minor=3)
    of(node, **STICK)
    stick(node, "1-1", minor=4)
    sticks = of(node, **STICK)
    assert sticks.listing == {"0403-6001-0001": HEALTHY, "0403-6001-port-1-1": HEALTHY}
    assert found_at(sticks, "0403-6001-0001") == ("/dev/stick3",)
    pull(node, "1-2", minor=3)
    assert of(node, **STICK).listing == {"0403-6001-port-1-1": HEALTHY}
    stick(node, "1-2", minor=5)
    assert found_at(of(node, **STICK), "0403-6001-0001") == ("/dev/stick5",)


def test_a_twin_that_comes_does_not_rename_the_usb_device_that_is_there(node: NodeTree) -> None:
    """Under a new name it would be free, and be given away twice."""
    stick(node, "1-2", minor=3)
    sticks = of(node, **STICK)
    assert sticks.listing == {"0403-6001-0001": HEALTHY}
    stick(node, "1-1", minor=4)
    both = {"0403-6001-0001": HEALTHY, "0403-6001-port-1-1": HEALTHY}
    assert sticks.rescan() == both
    assert found_at(sticks, "0403-6001-0001") == ("/dev/stick3",)
    pull(node, "1-2", minor=3)
    assert sticks.rescan() == both | {"0403-6001-0001": UNHEALTHY}
    stick(node, "1-2", minor=5)
    assert sticks.rescan() == both
    assert found_at(sticks, "0403-6001-0001") == ("/dev/stick5",)


def test_a_twin_that_goes_does_not_rename_the_usb_device_that_stays(node: NodeTree) -> None:
    stick(node, "1-1", minor=4)
    stick(node, "1-2", minor=3)
    sticks = of(node, **STICK)
    both = {"0403-6001-port-1-1": HEALTHY, "0403-6001-port-1-2": HEALTHY}
    assert sticks.listing == both
    pull(node, "1-1", minor=4)
    assert sticks.rescan() == both | {"0403-6001-port-1-1": UNHEALTHY}


def test_a_usb_device_in_another_port_keeps_its_id(node: NodeTree) -> None:
    stick(node, "1-2", minor=3)
    sticks = of(node, **STICK)
    pull(node, "1-2", minor=3)
    assert sticks.rescan() == {"0403-6001-0001": UNHEALTHY}
    stick(node, "1-4", minor=7)
    assert sticks.rescan() == {"0403-6001-0001": HEALTHY}


def stick(node: NodeTree, port: str, *, minor: int) -> None:
    directory = node.add_usb(port, "0403:6001", serial="0001")
    node.register(f"188:{minor}", directory / f"{port}:1.0", name=f"stick{minor}")
    node.plug(f"/dev/stick{minor}", f"188:{minor}")


def pull(node: NodeTree, port: str, *, minor: int) -> None:
    node.unplug(f"/dev/stick{minor}", f"/sys/dev/char/188:{minor}")
    for entry in (port, f"{port}:1.0"):
        link = node.root / "sys/bus/usb/devices" / entry
        shutil.rmtree(link.resolve(), ignore_errors=True)
        link.unlink()


def found_at(inventory: Inventory, device_id: str) -> tuple[str, ...]:
    state = inventory.find(DeviceID(device_id))
    assert state is not None
    return state.device.nodes


def reason(inventory: Inventory, device_id: str) -> str:
    state = inventory.find(DeviceID(device_id))
    assert state is not None
    return "; ".join(fault.text for fault in state.faults)


def test_a_defect_is_offered_as_unhealthy_and_is_nothing_missing(node: NodeTree) -> None:
    node.plug("/dev/a")
    pair = of(node, groups={"pair": ["/dev/a", "/dev/b"]})
    assert pair.listing == {"pair": UNHEALTHY}
    assert (pair.missing, pair.lacking) == ("", 0)


def test_no_card_at_all_is_nothing_missing_unless_one_is_expected(node: NodeTree) -> None:
    assert of(node, **SPU).missing == ""
    assert of(node, **SPU, expected=True).missing == (
        "no device of example.com/gadget is there, and the plugin expects one"
    )


def test_an_expected_device_that_is_not_there_is_logged_once_and_counted(
    node: NodeTree, caplog: pytest.LogCaptureFixture
) -> None:
    kvm = of(node, nodes={"paths": ["/dev/kvm"]}, expected=True)
    kvm.rescan()
    assert kvm.lacking == 1
    assert caplog.messages == [
        "devices missing resource=example.com/gadget:"
        " no device of example.com/gadget is there, and the plugin expects one"
    ]
    node.plug("/dev/kvm")
    kvm.rescan()
    assert (kvm.lacking, kvm.missing) == (0, "")


def test_two_groups_that_share_a_device_are_not_given_away(node: NodeTree) -> None:
    node.plug("/dev/ttyUSB0")
    node.plug("/dev/ttyUSB1")
    node.link("/dev/left", "ttyUSB0")
    node.link("/dev/right", "ttyUSB1")
    groups = of(node, groups={"a": ["/dev/left"], "b": ["/dev/right", "/dev/ttyUSB1"]})
    assert groups.listing == {"a": HEALTHY, "b": HEALTHY}
    node.unplug("/dev/right")
    node.link("/dev/right", "ttyUSB0")
    assert groups.rescan() == {"a": UNHEALTHY, "b": UNHEALTHY}
    assert [reason(groups, name) for name in "ab"] == [
        "group a shares /dev/left with group b",
        "group b shares /dev/right with group a",
    ]


def test_a_group_of_which_nothing_is_there_is_missed_where_it_is_expected(node: NodeTree) -> None:
    pair = {"pair": ["/dev/a", "/dev/b"]}
    assert of(node, groups=pair).missing == ""
    pairs = of(node, groups=pair, expected=True)
    assert (pairs.missing, pairs.lacking) == ("group pair lacks /dev/a, /dev/b", 1)
    assert pairs.listing == {}


def test_nothing_is_missing_before_the_first_look(node: NodeTree) -> None:
    resource = Resource.model_validate({"name": "example.com/gadget", **SPU, "expected": True})
    assert Inventory(resource, root=node.root, reports=node.root).missing == ""


def test_a_long_list_of_absences_is_cut(node: NodeTree) -> None:
    list(cards(node, 9))
    for index in range(9):
        node.unplug(f"/dev/spu{index}")
    assert of(node, **SPU).missing.endswith(" in /dev and 5 more")
    long = [f"/dev/{'x' * 250}{index}" for index in range(9)]
    assert len(of(node, **SPU, control=long).missing) < 600


def test_changes_are_logged_once(
    inventory: Inventory, node: NodeTree, caplog: pytest.LogCaptureFixture
) -> None:
    node.unplug("/dev/gadget1")
    caplog.clear()
    inventory.rescan()
    inventory.rescan()
    assert caplog.messages == [
        "device changed resource=example.com/gadget device=gadget1 health=Unhealthy:"
        " /dev/gadget1 is gone"
    ]


def test_more_devices_than_the_kubelet_takes_are_left_out_and_said(
    node: NodeTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_IDS", 5)
    for number in range(4):
        node.plug(f"/dev/gadget{number}")
    gadgets = of(node, nodes={"glob": "/dev/gadget*"}, replicas=2)
    gadgets.rescan()
    assert list(gadgets.listing) == ["gadget0::0", "gadget0::1", "gadget1::0", "gadget1::1"]
    errors = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert errors == ["devices left out resource=example.com/gadget count=2: more than 5 ids"]


async def test_a_look_that_fails_changes_nothing(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def vanish(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/dev/serial")

    monkeypatch.setattr(module, "discover", vanish)
    assert await inventory.refresh() == {"gadget0": HEALTHY, "gadget1": HEALTHY}
    assert caplog.messages[-1].startswith("rescan failed resource=example.com/gadget: [Errno 2]")


async def test_drivers_that_hang_hold_up_their_own_resources_only(
    inventory: Inventory, node: NodeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = [of(node, nodes={"glob": "/dev/hang*"}) for _ in range(40)]
    stuck = [one.resource for one in hanging]
    answered = threading.Event()

    def read(resource: Resource, **arguments: object) -> object:
        if any(one is resource for one in stuck):
            answered.wait(timeout=10.0)
        return discover(resource, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "discover", read)
    looks = [asyncio.ensure_future(one.refresh()) for one in hanging]
    await asyncio.sleep(0)  # they begin
    try:
        node.plug("/dev/gadget2")
        async with asyncio.timeout(5.0):
            assert await inventory.refresh() == dict.fromkeys(
                ("gadget0", "gadget1", "gadget2"), HEALTHY
            )
    finally:
        answered.set()
        await asyncio.gather(*looks)
