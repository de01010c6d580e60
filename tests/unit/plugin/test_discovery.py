# SPDX-License-Identifier: Apache-2.0
"""Which devices a resource has is a function of the nodes and of sysfs below a root."""

import os

import pytest

from devicemount_plugin.config import Resource
from devicemount_plugin.discovery import MAX_ID_LENGTH, Device, discover

from .node_tree import NodeTree, cards

SPU = {"pci": {"vendor": "1f36", "device": "7030"}}
STICK = {"usb": {"vendor": "0403", "product": "6001"}}


def resource(**source: object) -> Resource:
    return Resource.model_validate({"name": "example.com/gadget", **source})


def found(node: NodeTree, **source: object) -> dict[str, Device]:
    devices = discover(resource(**source), root=node.root, known={})
    assert all(key == device.id for key, device in devices.items())
    return {str(key): device for key, device in devices.items()}


def paths(node: NodeTree, **source: object) -> dict[str, tuple[str, ...]]:
    return {key: device.nodes for key, device in found(node, **source).items()}


def test_each_match_is_a_device_named_like_its_node(node: NodeTree) -> None:
    for name in ("loop0", "loop1", "loop10", "loop-control"):
        node.plug(f"/dev/{name}")
    assert paths(node, nodes={"glob": "/dev/loop[0-3]"}) == {
        "loop0": ("/dev/loop0",),
        "loop1": ("/dev/loop1",),
    }


def test_paths_that_are_absent_are_no_devices(node: NodeTree) -> None:
    node.plug("/dev/vcs")
    assert paths(node, nodes={"paths": ["/dev/vcs1", "/dev/vcs"]}) == {"vcs": ("/dev/vcs",)}


def test_a_path_is_not_a_pattern(node: NodeTree) -> None:
    node.plug("/dev/loop0")
    assert paths(node, nodes={"paths": ["/dev/loop*"]}) == {}


def test_directories_files_and_links_to_elsewhere_are_no_devices(node: NodeTree) -> None:
    node.plug("/dev/usb/port1")
    node.plug("/dev/gadget0")
    node.plug("/outside")
    node.put("/dev/file", "")
    node.put("/etc/passwd", "root")
    node.link("/dev/broken", "nowhere")
    node.link("/dev/passwd", "/etc/passwd")
    node.link("/dev/out", "../outside")
    node.link("/dev/round", "round")
    assert paths(node, nodes={"glob": "/dev/*"}) == {"gadget0": ("/dev/gadget0",)}


def test_a_node_whose_name_is_no_text_is_no_device(node: NodeTree) -> None:
    """The kubelet could not be told of it; os.fsdecode gives such a name as Python has it."""
    (card,) = cards(node, 1)
    node.plug(os.fsdecode(b"/dev/gadget\xff"), "240:0")
    node.unplug("/dev/spu0")
    node.plug("/dev/gadget0")
    assert paths(node, nodes={"glob": "/dev/gadget*"}) == {"gadget0": ("/dev/gadget0",)}
    assert paths(node, **SPU) == {card: ()}


def test_a_link_is_followed_as_on_the_node_and_keeps_its_name(node: NodeTree) -> None:
    node.plug("/dev/ttyUSB3")
    node.link("/dev/serial/by-id/usb-a", "../../ttyUSB3")
    node.link("/dev/serial/by-id/usb-b", "/dev/serial/by-id/usb-a")
    assert paths(node, nodes={"glob": "/dev/serial/by-id/*"}) == {
        "serial-by-id-usb-a": ("/dev/serial/by-id/usb-a",)
    }


def test_names_of_one_number_are_one_device_under_its_own_name(node: NodeTree) -> None:
    node.plug("/dev/n0", "242:7")
    node.plug("/dev/n0-copy", "242:7")
    node.link("/dev/a", "n0")
    assert paths(node, nodes={"paths": ["/dev/a", "/dev/n0", "/dev/n0-copy"]}) == {
        "n0": ("/dev/n0",)
    }


def test_a_character_and_a_block_device_of_one_number_are_two(node: NodeTree) -> None:
    node.plug("/dev/b", "242:7", kind="block")
    node.plug("/dev/c", "242:7")
    assert set(paths(node, nodes={"glob": "/dev/?"})) == {"b", "c"}


def test_a_node_in_a_directory_is_named_by_its_path(node: NodeTree) -> None:
    node.plug("/dev/card/gadget0")
    node.plug("/dev/serial/gadget0")
    assert paths(node, nodes={"glob": "/dev/*/gadget*"}) == {
        "card-gadget0": ("/dev/card/gadget0",),
        "serial-gadget0": ("/dev/serial/gadget0",),
    }


def test_names_that_would_give_one_id_give_two(node: NodeTree) -> None:
    node.plug("/dev/a/b")
    node.plug("/dev/a-b")
    devices = paths(node, nodes={"paths": ["/dev/a/b", "/dev/a-b"]})
    assert devices == {"a-b": ("/dev/a-b",), "a-b-19c62f6a5afea545": ("/dev/a/b",)}


def test_an_id_is_never_longer_than_the_api_says(node: NodeTree) -> None:
    for letter in "ab":
        node.plug(f"/dev/{'x' * 100}{letter}")
    ids = paths(node, nodes={"glob": "/dev/x*"})
    assert len(ids) == 2
    assert max(map(len, ids)) <= MAX_ID_LENGTH


def test_the_numa_node_of_a_node_is_its_devices(node: NodeTree) -> None:
    directory = node.add_pci("0000:01:00.0", "8086:0001", numa_node=1)
    node.register("242:5", directory, name="gadget/gadget0")
    node.plug("/dev/gadget0", "242:5")
    assert found(node, nodes={"paths": ["/dev/gadget0"]})["gadget0"].numa_node == 1


def test_a_group_is_one_device_however_many_of_its_nodes_are_there(node: NodeTree) -> None:
    groups = {
        "first": ["/dev/a0", "/dev/b0"],
        "second": ["/dev/a1", "/dev/b1"],
        "third": ["/dev/c"],
    }
    node.plug("/dev/a0")
    node.plug("/dev/b0")
    node.plug("/dev/b1")
    assert paths(node, groups=groups) == {
        "first": ("/dev/a0", "/dev/b0"),
        "second": ("/dev/a1", "/dev/b1"),
    }


def test_each_pci_function_is_a_device_with_the_nodes_below_it(node: NodeTree) -> None:
    addresses = list(cards(node, 3))
    node.add_pci("0000:00:02.0", "1af4:1042", driver="virtio-pci")
    devices = found(node, **SPU)
    assert list(devices) == addresses
    assert [device.nodes for device in devices.values()] == [
        ("/dev/spu0",),
        ("/dev/spu1",),
        ("/dev/spu2",),
    ]
    assert devices[addresses[0]].label == "PCI device 0000:3b:00.0 (1f36:7030)"
    assert devices[addresses[0]].numa_node == 0


def test_the_name_of_a_pci_devices_node_does_not_matter(node: NodeTree) -> None:
    directory = node.add_pci("0000:3b:00.0", "1f36:7030", driver="spu")
    for minor, name in enumerate(("dsp/queue", "anything")):
        node.register(f"240:{minor}", directory, name=f"class/{minor}")
        node.plug(f"/dev/{name}", f"240:{minor}")
    assert paths(node, **SPU) == {"0000:3b:00.0": ("/dev/anything", "/dev/dsp/queue")}


def test_an_id_outlives_other_numbers_and_names(node: NodeTree) -> None:
    directory = node.add_pci("0000:3b:00.0", "1f36:7030", driver="spu")
    node.register("241:9", directory, name="spu/spu9")
    node.plug("/dev/spu9", "241:9")
    assert paths(node, **SPU) == {"0000:3b:00.0": ("/dev/spu9",)}


def test_the_nodes_of_a_pci_device_can_be_narrowed_down(node: NodeTree) -> None:
    directory = node.add_pci("0000:3b:00.0", "1f36:7030", driver="drm")
    for minor, name in ((0, "card0"), (128, "renderD128")):
        node.register(f"226:{minor}", directory, name=f"drm/{name}")
        node.plug(f"/dev/dri/{name}", f"226:{minor}")
    pci = {"vendor": "1f36", "nodes": ["/dev/dri/renderD*"]}
    assert paths(node, pci=pci) == {"0000:3b:00.0": ("/dev/dri/renderD128",)}


def test_a_function_behind_another_keeps_its_nodes_to_itself(node: NodeTree) -> None:
    bridge = node.add_pci("0000:3a:00.0", "1f36:7030", driver="pcieport")
    card = node.add_pci("0000:3b:00.0", "1f36:7030", driver="spu")
    inner = bridge / card.name
    card.rename(inner)
    (node.root / "sys/bus/pci/devices" / card.name).unlink()
    node.link(
        f"/sys/bus/pci/devices/{card.name}",
        f"../../../devices/pci0000:00/{bridge.name}/{card.name}",
    )
    node.register("240:0", inner, name="spu/spu0")
    node.plug("/dev/spu0", "240:0")
    assert paths(node, **SPU) == {"0000:3a:00.0": (), "0000:3b:00.0": ("/dev/spu0",)}


def test_the_drivers_own_node_is_a_control_node(node: NodeTree) -> None:
    list(cards(node, 1))
    node.register("240:255", "spu", name="spuctl")
    node.plug("/dev/spuctl", "240:255")
    node.plug("/dev/other", "242:0")
    (device,) = found(node, **SPU, control=["/dev/named"]).values()
    assert device.control == ("/dev/named", "/dev/spuctl")


@pytest.mark.parametrize(
    ("major", "foreign"),
    [
        pytest.param(10, False, id="misc devices share their major"),
        pytest.param(240, True, id="another device has the major too"),
    ],
)
def test_a_major_that_is_not_the_drivers_alone_tells_nothing(
    *, node: NodeTree, major: int, foreign: bool
) -> None:
    directory = node.add_pci("0000:3b:00.0", "1f36:7030", driver="spu")
    node.register(f"{major}:0", directory, name="spu/spu0")
    node.plug("/dev/spu0", f"{major}:0")
    if foreign:
        other = node.add_pci("0000:00:02.0", "1af4:1042")
        node.register(f"{major}:1", other, name="other/other0")
    node.register(f"{major}:2", "misc", name="kvm")
    node.plug("/dev/kvm", f"{major}:2")
    (device,) = found(node, **SPU).values()
    assert (device.nodes, device.control) == (("/dev/spu0",), ())


def plug_stick(node: NodeTree, port: str, *, serial: str, minor: int) -> None:
    directory = node.add_usb(port, "0403:6001", serial=serial)
    node.register(f"189:{minor}", directory, name="")
    node.plug(f"/dev/bus/usb/001/00{minor}", f"189:{minor}")
    node.register(
        f"188:{minor}", directory / f"{port}:1.0", name=f"ttyUSB{minor}/tty/ttyUSB{minor}"
    )
    node.plug(f"/dev/ttyUSB{minor}", f"188:{minor}")


def test_a_usb_device_has_its_own_node_and_its_interfaces(node: NodeTree) -> None:
    plug_stick(node, "1-2", serial="A1", minor=3)
    node.add_usb("1-3", "0403:6002", serial="A2")
    assert paths(node, **STICK) == {"0403-6001-A1": ("/dev/bus/usb/001/003", "/dev/ttyUSB3")}
    narrowed = {"usb": {**STICK["usb"], "serial": "A1", "nodes": ["/dev/ttyUSB*"]}}
    assert paths(node, **narrowed) == {"0403-6001-A1": ("/dev/ttyUSB3",)}
    assert paths(node, usb={**STICK["usb"], "serial": "B"}) == {}


def test_a_usb_serial_number_outlives_another_port(node: NodeTree) -> None:
    plug_stick(node, "1-4", serial="A1", minor=7)
    assert paths(node, **STICK) == {"0403-6001-A1": ("/dev/bus/usb/001/007", "/dev/ttyUSB7")}


@pytest.mark.parametrize("serial", ["", "0123456789"])
def test_twins_are_told_apart_by_their_ports(node: NodeTree, serial: str) -> None:
    plug_stick(node, "1-2", serial=serial, minor=3)
    plug_stick(node, "1-1", serial=serial, minor=4)
    assert paths(node, **STICK) == {
        "0403-6001-port-1-1": ("/dev/bus/usb/001/004", "/dev/ttyUSB4"),
        "0403-6001-port-1-2": ("/dev/bus/usb/001/003", "/dev/ttyUSB3"),
    }


def test_a_serial_number_cannot_pass_for_a_port(node: NodeTree) -> None:
    plug_stick(node, "1-1", serial="port/1-2", minor=3)
    plug_stick(node, "1-2", serial="", minor=4)
    assert paths(node, **STICK) == {
        "0403-6001-port-1-1": ("/dev/bus/usb/001/003", "/dev/ttyUSB3"),
        "0403-6001-port-1-2": ("/dev/bus/usb/001/004", "/dev/ttyUSB4"),
    }


def test_a_serial_number_cannot_write_what_it_likes(node: NodeTree) -> None:
    plug_stick(node, "1-2", serial="a::1\x1b[31m /", minor=3)
    assert list(paths(node, **STICK)) == ["0403-6001-a__1__31m_-"]


def test_a_machine_without_that_bus_has_no_devices(node: NodeTree) -> None:
    assert paths(node, **SPU) == {}
    assert paths(node, **STICK) == {}
