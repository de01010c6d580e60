# SPDX-License-Identifier: Apache-2.0
"""Discovery on this machine's own /sys and /dev: the kernel's layout, not a copy of it."""

from collections.abc import Iterator
from pathlib import Path

from devicemount_plugin.config import Resource
from devicemount_plugin.discovery import discover
from devicemount_plugin.health import faults_of
from devicemount_plugin.tree import Number, nodes_by_number, number_at

ROOT = Path("/")
PCI = Path("/sys/bus/pci/devices")


def nodes_of_pci() -> Iterator[tuple[str, Number]]:
    """Yield each device node of this machine with the PCI function that is nearest above it."""
    functions = {function.name for function in PCI.glob("*")}
    for number in nodes_by_number(root=ROOT):
        directory = Path(f"/sys/dev/{number.kind}/{number}").resolve()
        above = next((one.name for one in directory.parents if one.name in functions), None)
        if above is not None:
            yield above, number


def test_each_device_node_is_of_its_pci_function() -> None:
    """A machine without PCI has no such nodes: none may be found there."""
    vendors = {(function / "vendor").read_text().strip()[2:] for function in PCI.glob("*")}
    found = set()
    for vendor in vendors | {"1f36"}:
        source = {"name": "example.com/any", "pci": {"vendor": vendor}}
        resource = Resource.model_validate(source)
        for device in discover(resource, root=ROOT, known={}).values():
            numbers = [number_at(path, root=ROOT) for path in device.nodes]
            found |= {(device.id, number) for number in numbers if number is not None}
            if numbers and None not in numbers:
                assert faults_of(device, resource, root=ROOT) == ()
    assert found == set(nodes_of_pci())


def test_a_node_leads_to_its_directory() -> None:
    resource = Resource.model_validate(
        {
            "name": "example.com/null",
            "nodes": {"paths": ["/dev/null"]},
            "health": [{"attribute": "dev", "healthy": ["1:3"]}],
        }
    )
    (device,) = discover(resource, root=ROOT, known={}).values()
    assert device.directory == "/sys/devices/virtual/mem/null"
    assert faults_of(device, resource, root=ROOT) == ()
