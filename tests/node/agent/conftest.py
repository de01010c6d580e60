# SPDX-License-Identifier: Apache-2.0
"""Containers on both cgroup versions, and `hold` as the image has it."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.model import Access, DeviceNode, DeviceNumber

from .containers import HIERARCHIES, Lab, lab

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("hold") / "hold"
    source = REPOSITORY / "agent/hold/hold.c"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(binary), str(source)], check=True)
    return binary


@pytest.fixture(autouse=True)
def node_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this process for one of the node's: its first one may be out of reach."""
    monkeypatch.setattr("devicemount_agent.graft.shape.NODE_PROCESS", Path("/proc/self"))


def _lab(version: CgroupVersion, tmp_path: Path) -> Iterator[Lab]:
    if os.geteuid() != 0 or not HIERARCHIES[version].is_dir():
        pytest.skip(f"needs root and a cgroup {version.value} hierarchy")
    with lab(version, tmp_path) as made:
        yield made


@pytest.fixture(params=list(CgroupVersion), ids=lambda version: version.value)
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    yield from _lab(request.param, tmp_path)


@pytest.fixture
def v1(tmp_path: Path) -> Iterator[Lab]:
    yield from _lab(CgroupVersion.V1, tmp_path)


@pytest.fixture
def v2(tmp_path: Path) -> Iterator[Lab]:
    yield from _lab(CgroupVersion.V2, tmp_path)


# Devices that the testbed gives to nobody: its pods on this machine are no holders of ours.
def _node(path: str) -> DeviceNode:
    found = Path(path).stat()
    kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
    number = DeviceNumber(kind, os.major(found.st_rdev), os.minor(found.st_rdev))
    return DeviceNode(path=path, host_path=path, number=number, access=Access.READ | Access.WRITE)


@pytest.fixture
def vcsa() -> DeviceNode:
    return _node("/dev/vcsa")


@pytest.fixture
def vcsu() -> DeviceNode:
    return _node("/dev/vcsu")
