# SPDX-License-Identifier: Apache-2.0
"""The GPUs as NVML counts them, a whole agent, and cgroups of either version for its containers."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pynvml
import pytest

from component.agent.conftest import Node, authority, hold, node
from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.kernel.libraries import dlopen
from devicemount_agent.nvml import DIRECTORIES, LIBRARY
from node.agent.containers import HIERARCHIES, Lab, lab

from . import mounts
from .notebooks import Kind, Notebooks

__all__ = ["authority", "hold", "node"]

CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="session")
def minors() -> Mapping[str, int]:
    """Return NVML's own list: UUID -> minor. It keeps no device open."""
    places = (Path("/", directory, LIBRARY) for directory in DIRECTORIES)
    if (found := next((place for place in places if place.exists()), None)) is not None:
        dlopen(found)
    pynvml.nvmlInit()
    devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    minors = {pynvml.nvmlDeviceGetUUID(d): pynvml.nvmlDeviceGetMinorNumber(d) for d in devices}
    pynvml.nvmlShutdown()
    return minors


@pytest.fixture(scope="session")
def own_mounts() -> None:
    """Leave the machine's mounts to others, until the end of this process."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    mounts.unshare()
    while CGROUPS.is_mount():
        mounts.unmount(CGROUPS)


@pytest.fixture(params=list(CgroupVersion), ids=lambda version: version.value)
def hierarchy(
    request: pytest.FixtureRequest,
    own_mounts: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Lab]:
    """Give cgroups of this version, whatever the machine itself has."""
    version: CgroupVersion = request.param
    monkeypatch.setitem(HIERARCHIES, CgroupVersion.V2, CGROUPS)
    with cgroups_mounted(version), lab(version, tmp_path) as made:
        yield made


@contextmanager
def cgroups_mounted(version: CgroupVersion) -> Iterator[None]:
    """Mount at /sys/fs/cgroup what a node of this version has there, seen by this process only."""
    kinds = {
        CgroupVersion.V1: [(CGROUPS, "tmpfs", ""), (HIERARCHIES[version], "cgroup", "devices")],
        CgroupVersion.V2: [(CGROUPS, "cgroup2", "")],
    }
    with mounts.gone_at_the_end() as made:
        for place, kind, options in kinds[version]:
            try:
                place.mkdir(exist_ok=True)
                mounts.mount(kind, place, options)
            except OSError as error:
                pytest.skip(f"this kernel gives no cgroup {version.value} hierarchy: {error}")
            made.append(place)
        yield


@pytest.fixture(params=list(Kind), ids=lambda kind: kind.name.lower())
def notebooks(request: pytest.FixtureRequest, node: Node) -> Iterator[Notebooks]:
    with ExitStack() as stack:
        yield Notebooks(node, request.param, stack)
