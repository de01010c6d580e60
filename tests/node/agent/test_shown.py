# SPDX-License-Identifier: Apache-2.0
"""Readers `bundle` and `live` at a container that runc made: exactly what it has, and alike."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from devicemount_agent.allocation import live
from devicemount_agent.allocation.bundle import Bundle
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.live import Live
from devicemount_agent.allocation.said import Answer, Reader, Subject
from devicemount_agent.errors import AllocationUnknown
from devicemount_agent.model import BindMount, DeviceID, DeviceNode, EnvVar, Link, ResourceName
from devicemount_agent.profiles.store import Profiles

from .runc import Running, started

RESOURCE = ResourceName("example.com/gadget")
LIBRARIES = "/opt/vendor/lib"


@pytest.fixture(autouse=True)
def node_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this process for one of the node's: its first one may be out of reach."""
    monkeypatch.setattr(live, "NODE_MOUNTS", "/proc/self/mountinfo")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "vendor/libgadget.so.1.2"
    path.parent.mkdir()
    path.touch()
    (path.parent / "libgadget.so.1").symlink_to(path.name)
    return path


@pytest.fixture
def shadow(
    tmp_path: Path, hold: Path, library: Path, vcsa: DeviceNode, vcsu: DeviceNode
) -> Iterator[Running]:
    """Make a container with what a vendor's runtime added, and with what a pod asks for itself."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "data").touch()
    numbers = [
        {"type": node.number.kind, "major": node.number.major, "minor": node.number.minor}
        for node in (vcsa, vcsu)
    ]
    spec = {
        "env": [f"LD_LIBRARY_PATH={LIBRARIES}", "SECRET=1"],
        "devices": [
            {**numbers[0], "path": "/dev/gadget/vcsa", "fileMode": 0o600},
            {**numbers[1], "path": "/dev/vcsu", "fileMode": 0o600},
        ],
        "rules": [
            {**numbers[0], "allow": True, "access": "rwm"},
            {**numbers[1], "allow": True, "access": "r"},
        ],
        "mounts": [
            bind(library, f"{LIBRARIES}/{library.name}", "ro"),
            bind(volume, "/data"),
            bind(volume, "/etc/hosts"),
        ],
        "hooks": {"createContainer": [{"path": "/bin/true", "args": HOOK}]},
    }
    with started(tmp_path, hold, spec, asked=frozenset({"/data"})) as running:
        yield running


HOOK = ["nvidia-cdi-hook", "update-ldcache", "--folder", LIBRARIES]


def bind(source: Path, destination: str, *options: str) -> dict[str, object]:
    listed = ["rbind", *options]
    return {"source": str(source), "destination": destination, "type": "bind", "options": listed}


def subject(running: Running) -> Subject:
    profile = Profiles(Path("/nonexistent")).usual(RESOURCE)
    return Subject(RESOURCE, frozenset({DeviceID("0")}), Answer(), profile, running.pod_uid)


async def test_both_show_exactly_what_the_container_has(
    shadow: Running, library: Path, vcsa: DeviceNode, vcsu: DeviceNode
) -> None:
    host = Host(Path("/"))
    by_bundle: Reader = Bundle(host, shadow, (shadow.state,))
    said = {
        "bundle": await by_bundle.read(subject(shadow)),
        "live": await Live(host, shadow).read(subject(shadow)),
    }
    mount = BindMount(f"{LIBRARIES}/{library.name}", str(library), read_only=True)
    for name, shown in said.items():
        assert shown is not None, name
        assert {(n.path, n.host_path, n.number) for n in shown.nodes} == {
            ("/dev/gadget/vcsa", "/dev/vcsa", vcsa.number),
            ("/dev/vcsu", "/dev/vcsu", vcsu.number),
        }, name
        assert shown.edits.mounts == (mount,), name
        assert shown.edits.env == (EnvVar("LD_LIBRARY_PATH", LIBRARIES),), name
    assert said["bundle"] and said["live"]
    access = {node.path: str(node.access) for node in said["bundle"].nodes}
    assert access == {"/dev/gadget/vcsa": "rw", "/dev/vcsu": "r"}
    assert said["bundle"].edits.links == (Link(f"{LIBRARIES}/libgadget.so.1", library.name),)
    assert said["live"].edits.links == ()


async def test_another_pods_container_is_not_looked_at(shadow: Running) -> None:
    other = replace(shadow, pod_uid="11111111-2222-4333-8444-555555555555")
    with pytest.raises(AllocationUnknown, match="is not the shadow pod's"):
        await Live(Host(Path("/")), other).read(subject(other))
