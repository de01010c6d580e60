# SPDX-License-Identifier: Apache-2.0
"""NVML, by a library that stands in for NVIDIA's: what it says is added, its silence harms none."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devicemount_agent import nvml
from devicemount_agent.holders import search
from devicemount_agent.model import DeviceNumber, PodUID
from devicemount_agent.nvml import MigDevice, Nvml

from .containers import Lab

MAJOR = 195
GPU = DeviceNumber("c", MAJOR, 3)
CONTROL = DeviceNumber("c", MAJOR, 255)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nvml") / nvml.LIBRARY
    source = Path(__file__).with_name("fake_nvml.c")
    options = ["-shared", "-fPIC", "-Wall", "-Werror", f"-Wl,-soname,{nvml.LIBRARY}"]
    subprocess.run(["gcc", *options, "-o", str(path), str(source)], check=True)
    return path


@pytest.fixture
def node(tmp_path: Path, library: Path) -> Path:
    """Return the root of a node with a driver."""
    for directory in (nvml.DRIVER, nvml.DIRECTORIES[0]):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "proc/devices").write_text(f"Character devices:\n{MAJOR:3} nvidia-frontend\n")
    (tmp_path / nvml.DIRECTORIES[0] / nvml.LIBRARY).symlink_to(library)
    return tmp_path


def test_a_process_that_only_the_driver_knows_is_a_holder(
    node: Path, v2: Lab, hold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = v2.container()
    monkeypatch.setenv("FAKE_NVML_PID", str(box.init_pid))
    question = search.Question(
        frozenset({GPU}),
        target=box.pod_uid,
        shadow=PodUID("shadow"),
        granted=frozenset(),
        hold=hold,
        cgroup_root=v2.root,
        users=Nvml(node).users,
    )
    found = [sighting.holder for sighting in search.search(question)]
    assert [(one.container_id, one.blocking) for one in found] == [(box.id, True)]


def test_only_the_asked_gpu_counts(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_PID", "7")
    library = Nvml(node)
    assert library.users({GPU}) == {7: frozenset({GPU})}
    assert library.users({DeviceNumber("c", MAJOR, 0), CONTROL}) == {}
    assert library.users({DeviceNumber("c", MAJOR + 1, 3)}) == {}


def test_a_gpu_that_is_lost_hides_nobody_of_the_others(
    node: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAKE_NVML_PID", "7")
    monkeypatch.setenv("FAKE_NVML_LOST", "1")
    assert Nvml(node).users({GPU}) == {7: frozenset({GPU})}
    assert "NVML did not answer for a GPU" in caplog.text


def test_a_mig_id_is_told_with_its_gpu_and_instances(node: Path) -> None:
    library = Nvml(node)
    assert library.mig_device("MIG-known") == MigDevice("GPU-zero", 5, 1)
    assert library.mig_device("MIG-other") is None


def test_without_a_driver_nobody_is_asked(tmp_path: Path) -> None:
    assert Nvml(tmp_path).users({GPU}) == {}
    assert Nvml(tmp_path).mig_device("MIG-known") is None


def test_a_library_that_never_answers_costs_its_deadline_once(node: Path) -> None:
    """In a process of its own: the hanging thread stays."""
    script = (
        "import sys, pathlib; from devicemount_agent.nvml import Nvml\n"
        "from devicemount_agent.model import DeviceNumber\n"
        "n = Nvml(pathlib.Path(sys.argv[1]))\n"
        "print([n.users({DeviceNumber('c', 195, 3)}) for _ in range(5)])"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, str(node)],
        env={**os.environ, "FAKE_NVML_HANGS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[{}, {}, {}, {}, {}]"
    assert time.monotonic() - began < 2 * nvml.ANSWER_S
