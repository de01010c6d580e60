# SPDX-License-Identifier: Apache-2.0
"""Discovery on this machine's own /sys and /dev: the kernel's layout, not a copy of it."""

import os
from pathlib import Path

import pytest

from devicemount_plugin.config import Resource
from devicemount_plugin.discovery import discover
from devicemount_plugin.health import faults_of

ROOT = Path("/")


def block_device_of_pci() -> tuple[Path, str]:
    """Return a PCI function with a disk and the disk's number; skip where there is none."""
    for link in sorted(Path("/sys/dev/block").iterdir()):
        functions = [part for part in link.resolve().parents if (part / "vendor").exists()]
        pci = [one for one in functions if (Path("/sys/bus/pci/devices") / one.name).exists()]
        if pci:
            return pci[0], link.name
    pytest.skip("no disk of this machine is behind a PCI function")


def test_the_disk_of_a_pci_function_is_its_node() -> None:
    function, number = block_device_of_pci()
    vendor, device = ((function / name).read_text().strip()[2:] for name in ("vendor", "device"))
    resource = Resource.model_validate(
        {"name": "example.com/disk", "pci": {"vendor": vendor, "device": device}}
    )
    found = discover(resource, root=ROOT, known={})
    disk = next(one for one in found.values() if one.id == function.name)
    numbers = {Path(path).stat().st_rdev for path in disk.nodes}
    major, minor = map(int, number.split(":"))
    assert os.makedev(major, minor) in numbers
    assert faults_of(disk, resource, root=ROOT) == ()


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
