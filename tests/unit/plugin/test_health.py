# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a device is said in a sentence, and whether the machine lacks something."""

import pytest

from devicemount_plugin.config import Resource
from devicemount_plugin.discovery import discover
from devicemount_plugin.health import FaultKind, faults_of

from .node_tree import NodeTree, cards

SPU = {"pci": {"vendor": "1f36", "device": "7030"}}
CARD = "PCI device 0000:3b:00.0 (1f36:7030)"


def faults(node: NodeTree, **source: object) -> list[tuple[str, str]]:
    """Return kind and text of everything that is wrong with the only device."""
    resource = Resource.model_validate({"name": "example.com/gadget", **source})
    (device,) = discover(resource, root=node.root, known={}).values()
    found = faults_of(device, resource, root=node.root)
    assert all(isinstance(fault.kind, FaultKind) for fault in found)
    return [(fault.kind.value, fault.text) for fault in found]


def test_nothing_is_wrong_with_a_complete_device(node: NodeTree) -> None:
    (address,) = cards(node, 1)
    node.put(f"/sys/devices/pci0000:00/{address}/state", "ok")
    check = {"attribute": "state", "healthy": ["ok", "idle"]}
    pci = {**SPU["pci"], "driver": "spu", "nodes": ["/dev/spu[0-9]"]}
    assert faults(node, pci=pci, control=["/dev/spu0"], health=[check]) == []


def test_no_driver(node: NodeTree) -> None:
    node.add_pci("0000:3b:00.0", "1f36:7030")
    assert faults(node, **SPU) == [
        ("absence", f"no driver is bound to {CARD}"),
        ("absence", f"{CARD} has no device node in /dev"),
    ]


def test_the_wrong_driver(node: NodeTree) -> None:
    list(cards(node, 1))
    assert faults(node, pci={"vendor": "1f36", "driver": "moffett"}) == [
        ("absence", f"driver spu is bound to {CARD}, not moffett")
    ]


def test_no_node(node: NodeTree) -> None:
    list(cards(node, 1))
    node.unplug("/dev/spu0")
    assert faults(node, **SPU) == [("absence", f"{CARD} has no device node in /dev")]
    assert faults(node, pci={"vendor": "1f36", "nodes": ["/dev/spu*"]}) == [
        ("absence", f"{CARD} has no device node /dev/spu*")
    ]


def test_no_control_node(node: NodeTree) -> None:
    list(cards(node, 1))
    assert faults(node, **SPU, control=["/dev/spuctl"]) == [
        ("absence", "the control node /dev/spuctl is absent")
    ]


def test_a_group_names_the_member_that_it_lacks(node: NodeTree) -> None:
    node.plug("/dev/a")
    assert faults(node, groups={"pair": ["/dev/a", "/dev/b", "/dev/c"]}) == [
        ("defect", "group pair lacks /dev/b, /dev/c")
    ]


def test_a_pci_device_names_the_node_that_it_lacks(node: NodeTree) -> None:
    list(cards(node, 1))
    pci = {"vendor": "1f36", "nodes": ["/dev/spu*", "/dev/render*"]}
    assert faults(node, pci=pci) == [("defect", f"{CARD} lacks /dev/render*")]


def test_a_node_that_sysfs_knows_is_missed(node: NodeTree) -> None:
    directory = node.add_pci("0000:3b:00.0", "1f36:7030", driver="spu")
    virtual = node.root / "sys/devices/virtual/spu"
    for minor, name, parent in (
        (0, "spu0", directory),
        (1, "spu0-data", directory),
        (9, "spu-control", virtual),
    ):
        node.register(f"240:{minor}", parent, name=name)
        (parent / name / "uevent").write_text(f"MAJOR=240\nMINOR={minor}\nDEVNAME={name}\n")
        node.plug(f"/dev/{name}", f"240:{minor}")
    assert faults(node, **SPU) == []
    node.unplug("/dev/spu0-data")
    assert faults(node, **SPU) == [("defect", f"{CARD} lacks /dev/spu0-data")]
    node.unplug("/dev/spu-control")
    assert ("absence", "the control node /dev/spu-control is absent") in faults(node, **SPU)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param("ok", [], id="one of the healthy values"),
        pytest.param(
            "lost\x1b[31m",
            [("defect", f"{CARD}: state is 'lost\\x1b[31m'")],
            id="another value is quoted",
        ),
        pytest.param(
            None, [("defect", f"{CARD}: state cannot be read")], id="no attribute is no health"
        ),
    ],
)
def test_an_attribute_tells_of_health(
    node: NodeTree, state: str | None, expected: list[tuple[str, str]]
) -> None:
    (address,) = cards(node, 1)
    if state is not None:
        node.put(f"/sys/devices/pci0000:00/{address}/state", state)
    assert faults(node, **SPU, health=[{"attribute": "state", "healthy": ["ok"]}]) == expected


def test_a_device_that_sysfs_does_not_know_has_no_attribute(node: NodeTree) -> None:
    node.plug("/dev/a")
    check = {"attribute": "state", "healthy": ["ok"]}
    assert faults(node, nodes={"paths": ["/dev/a"]}, health=[check]) == [
        ("defect", "/dev/a: state cannot be read")
    ]
