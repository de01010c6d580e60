# SPDX-License-Identifier: Apache-2.0
"""Where NVIDIA's plugin answers by CDI, a container of an image without the driver gets all of it.

The spec is what NVIDIA's own library writes of this machine's files (the testbed's nvidia-cdi; only
which GPUs there are is told to it).
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from component.agent.conftest import Node
from devicemount_agent.allocation.said import Answer
from devicemount_agent.nvml import DRIVER
from devicemount_agent_api.v1 import agent_pb2 as pb

from .cuda import computing
from .notebooks import GPU, Kind, Notebook, Notebooks
from .runc import layered, program

PROC = Path("/", DRIVER)
VENDOR = "k8s.device-plugin.nvidia.com"
NVIDIA_CDI = program("nvidia-cdi")
LOADING = "import ctypes; ctypes.CDLL('libcuda.so.1')"
CACHE = "CUDA_CACHE_PATH=/tmp/cuda"  # of CUDA's own: in no home directory
LIBRARY_DIRECTORIES = ("/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu")

pytestmark = [
    pytest.mark.skipif(not PROC.is_dir(), reason=f"no {PROC} on this machine"),
    pytest.mark.skipif(NVIDIA_CDI is None, reason="no nvidia-cdi: make binaries"),
]


@pytest.fixture
def notebook(node: Node, tmp_path: Path) -> Iterator[Notebook]:
    with layered(tmp_path) as image, ExitStack() as stack:
        yield Notebooks(node, Kind.RUNC, stack).by_runc(image)


def written(minors: Mapping[str, int]) -> dict[str, Any]:
    """Return the spec of this machine."""
    informations = (path.read_text() for path in PROC.glob("gpus/*/information"))
    buses = {
        facts["GPU UUID"]: facts["Bus Location"]
        for text in informations
        if (facts := dict(re.findall(r"^([^:]+):\s*(.*?)\s*$", text, re.MULTILINE)))
    }
    version = re.search(r"[0-9]+\.[0-9]+(\.[0-9]+)*", (PROC / "version").read_text())
    assert NVIDIA_CDI and version
    machine = {
        "vendor": VENDOR,
        "driverRoot": "/",
        "hook": "/usr/bin/nvidia-cdi-hook",
        "driver": version[0],
        "gpus": [
            {"uuid": uuid, "minor": minor, "pciBusID": buses[uuid], "mig": []}
            for uuid, minor in minors.items()
        ],
    }
    done = subprocess.run(
        [NVIDIA_CDI], input=json.dumps(machine), capture_output=True, text=True, check=True
    )
    spec = yaml.safe_load(done.stdout)
    assert isinstance(spec, dict)
    return spec


def strip(notebook: Notebook, paths: list[str]) -> None:
    """Remove the driver's files and the links to them from the container's copy."""
    libraries = {PurePosixPath(path).name.partition(".so")[0] for path in paths if ".so." in path}
    stems = (f"{directory}/{one}.so*" for directory in LIBRARY_DIRECTORIES for one in libraries)
    removing = notebook.run("sh", "-c", 'rm -f -- "$@" ' + " ".join(stems), "sh", *paths)
    assert removing.returncode == 0, removing.stderr


async def test_a_container_without_the_driver_gets_its_libraries_and_computes(
    node: Node, notebook: Notebook, minors: Mapping[str, int], tmp_path: Path
) -> None:
    spec, uuid = written(minors), min(minors, key=lambda uuid: minors[uuid])
    directory = tmp_path / "cdi"
    directory.mkdir()
    (directory / "nvidia.json").write_text(json.dumps(spec))
    node.settings = replace(node.settings, cdi_dynamic_directory=directory)
    paths = [mount["containerPath"] for mount in spec["containerEdits"]["mounts"]]
    strip(notebook, paths)
    assert notebook.run(sys.executable, "-c", LOADING).returncode != 0
    before = set(notebook.run("find", "/", "-xdev").stdout.splitlines())

    shadow = node.shadow(notebook.target, **{GPU: 1})
    answer = Answer()
    answer.cdi_devices.add(name=f"{VENDOR}/gpu={uuid}")
    node.kubelet.choose(shadow.pod, GPU, {uuid: []}, answer=answer)
    async with node.agent():
        granted = await node.apply(notebook.target, shadow)
        assert granted.phase == pb.GRANTED
        (of_shadow,) = granted.shadow_pods
        assert list(of_shadow.concerns) == []
        (device,) = of_shadow.devices
        assert set(device.mounts) >= set(paths)
        env = notebook.run("cat", "/run/devicemount/notebook-gpu.env").stdout.split()
        with computing(*notebook.inside, "env", *env, CACHE):
            assert (await node.remove(notebook.target)).phase == pb.BUSY
        assert (await node.remove(notebook.target)).phase == pb.REMOVED
    left = set(notebook.run("find", "/", "-xdev").stdout.splitlines()) - before
    assert {path for path in left if not path.startswith("/tmp/")} == set()
    assert notebook.device_files() == {}
    assert notebook.run(sys.executable, "-c", LOADING).returncode != 0
