# SPDX-License-Identifier: Apache-2.0
"""What is said of a resource before anything is reserved, and of a target that lacks something."""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import vendor_answers as vendors
from devicemount_agent import errors
from devicemount_agent.allocation import libraries
from devicemount_agent.allocation.facts import SENTENCE_LIMIT, Facts
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.libraries import Libraries
from devicemount_agent.model import Concern, Device, DeviceID, ResourceName
from devicemount_agent.questions import Unanswered
from devicemount_agent.service import CODES
from readers import shipped_profiles

SPU = ResourceName("moffett.ai/spu")


def facts(directory: Path) -> Facts:
    return Facts(shipped_profiles(), directory)


def test_a_slice_says_that_it_is_serialised_and_limited_by_environment(tmp_path: Path) -> None:
    about = facts(tmp_path).about(ResourceName("volcano.sh/vgpu-number"))
    assert (about.profile, about.is_serialised, about.refused) == ("volcano-vgpu", True, "")
    assert "CUDA_DEVICE_MEMORY_LIMIT*" in about.env_only
    assert "acceptEnvFile" in about.env_only


def test_a_refused_resource_says_why(tmp_path: Path) -> None:
    about = facts(tmp_path).about(ResourceName("huawei.com/Ascend910-2c"))
    assert about.refused.startswith("a vNPU cannot be given to a running container")


def test_what_the_plugin_misses_becomes_one_bounded_line(tmp_path: Path) -> None:
    assert facts(tmp_path).about(SPU).driver_missing == ""
    missing = tmp_path / "missing.json"
    missing.write_text(json.dumps({SPU: "card 0000:17:00.0 has\nno node\x1b[31m" + "x" * 999}))
    said = facts(tmp_path).about(SPU).driver_missing
    assert said.startswith("card 0000:17:00.0 has\\nno node\\x1b[31m")
    assert len(said) <= SENTENCE_LIMIT + 8
    assert facts(tmp_path).about(ResourceName("a.b/c")).driver_missing == ""


@pytest.mark.parametrize("text", ["", "[]", "{", '{"moffett.ai/spu": 1}', "[" * 5000, "x" * 70_000])
def test_a_file_of_the_plugin_that_is_none_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "missing.json").write_text(text)
    assert facts(tmp_path).about(SPU).driver_missing == ""


def test_the_plugins_file_is_read_anew_when_it_was_replaced_and_a_bad_one_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    about = facts(tmp_path)
    for text, said in (('{"moffett.ai/spu": "gone"}', "gone"), ("[", ""), ("{}", "")):
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").rename(tmp_path / "missing.json")
        for _ in range(3):
            assert about.about(SPU).driver_missing == said
    (tmp_path / "missing.json").unlink()
    assert about.about(SPU).driver_missing == ""
    assert caplog.text.count("ignored") == 1


@pytest.mark.parametrize("kind", ["pipe", "directory", "link"])
def test_the_plugin_cannot_hang_or_lead_the_agent_by_its_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "missing.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        (tmp_path / "secret").write_text(json.dumps({SPU: "secret"}))
        path.symlink_to("secret")
    about = facts(tmp_path).about(SPU)
    assert (about.profile, about.driver_missing) == ("moffett", "")


def test_every_error_has_a_code() -> None:
    leaves = errors.DeviceMountError.__subclasses__()
    own = {leaf for leaf in leaves if leaf.__module__ == errors.__name__}
    assert own == CODES.keys()


@dataclass
class Target:
    """A container whose root is a directory; its process is ours."""

    root_fd: int
    init_pid: int


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    root = tmp_path / "container"
    root.mkdir()
    fd = os.open(root, os.O_PATH)
    yield Target(fd, os.getpid())
    os.close(fd)


def concerns(node: Path, target: Target, resource: str) -> tuple[Concern, ...]:
    device = Device(ResourceName(resource), DeviceID("0"), ())
    return Libraries(Host(node), shipped_profiles()).concerns(target, [device, device])


def test_a_target_without_the_drivers_libraries_is_told_what_to_do(
    tmp_path: Path, target: Target
) -> None:
    vendors.make_root(tmp_path, "nvidia")
    (concern,) = concerns(tmp_path, target, "nvidia.com/gpu")
    assert concern.reason == "LibrariesMissing"
    assert "libcuda.so.1, libnvidia-ml.so.1" in concern.message
    assert "NVIDIA_VISIBLE_DEVICES=none" in concern.message
    assert "cdi-cri" in concern.message


@pytest.mark.parametrize(
    ("resource", "missing"),
    [
        ("volcano.sh/vgpu-number", "libcuda.so.1, libnvidia-ml.so.1: start it under NVIDIA's"),
        ("huawei.com/Ascend910", "libdcmi.so: start it under the Ascend runtime class"),
        ("huawei.com/npu", "libdcmi.so: start it under the Ascend runtime class"),
    ],
)
def test_other_vendors_targets_without_libraries_are_told_too(
    tmp_path: Path, target: Target, resource: str, missing: str
) -> None:
    (concern,) = concerns(tmp_path, target, resource)
    assert concern.reason == "LibrariesMissing"
    assert f"the container has no {missing}" in concern.message


@pytest.mark.parametrize("directory", ["/usr/local/dcmi", "/usr/lib/aarch64-linux-gnu"])
@pytest.mark.parametrize("resource", ["huawei.com/Ascend910", "huawei.com/npu"])
def test_ascends_libraries_are_found_where_its_runtime_mounts_them(
    tmp_path: Path, target: Target, directory: str, resource: str
) -> None:
    vendors.write(tmp_path / "container", f"{directory}/libdcmi.so", "")
    assert concerns(tmp_path, target, resource) == ()


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "volcano.sh/vgpu-number"])
@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("575.57.08", ()),
        (
            "550.54.15",
            (
                Concern(
                    "VersionMismatch",
                    "NVIDIA driver: 550.54.15 in the container, 575.57.08 on the node",
                ),
            ),
        ),
    ],
)
def test_libraries_must_fit_the_kernel_module(
    tmp_path: Path, target: Target, version: str, expected: tuple[Concern, ...], resource: str
) -> None:
    vendors.make_root(tmp_path, "nvidia")
    root = tmp_path / "container"
    directory = "/usr/lib/x86_64-linux-gnu"
    for name in ("libcuda", "libnvidia-ml"):
        vendors.write(root, f"{directory}/{name}.so.{version}", "")
        vendors.make_link(root, f"{directory}/{name}.so.1", f"{directory}/{name}.so.{version}")
    assert concerns(tmp_path, target, resource) == expected


def test_a_link_out_of_the_container_is_followed_inside_it(tmp_path: Path, target: Target) -> None:
    vendors.make_root(tmp_path, "nvidia")
    root = tmp_path / "container"
    vendors.make_link(
        root, "/usr/lib/libcuda.so.1", "../../../../usr/lib/x86_64-linux-gnu/libcuda.so"
    )
    (concern,) = concerns(tmp_path, target, "nvidia.com/gpu")
    assert "libcuda.so.1" in concern.message


def test_a_target_that_hangs_us_costs_one_deadline_and_none_of_the_agents_threads(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file server of its own can, under its libraries or under its environment."""
    vendors.make_root(tmp_path, "nvidia")
    goes_on, asked = threading.Event(), threading.Event()

    def hangs(pid: int) -> list[str]:
        asked.set()
        goes_on.wait(10)
        return []

    monkeypatch.setattr(libraries, "_library_path", hangs)
    monkeypatch.setattr(libraries, "ANSWER_S", 0.05)
    looked = Libraries(Host(tmp_path), shipped_profiles())
    gpu = Device(ResourceName("nvidia.com/gpu"), DeviceID("0"), ())
    with pytest.raises(Unanswered, match="no answer in"):
        looked.concerns(target, [gpu])
    assert asked.is_set()
    with pytest.raises(Unanswered, match="an earlier question"):
        looked.concerns(target, [gpu])
    monkeypatch.undo()
    other = Target(target.root_fd, os.getppid())
    assert looked.concerns(other, [gpu])  # nobody else waits
    goes_on.set()


def test_sola_must_be_of_one_version(tmp_path: Path, target: Target) -> None:
    assert concerns(tmp_path, target, SPU) == ()  # neither side has any
    for root, version in ((tmp_path, "3.6.0"), (tmp_path / "container", "3.5.0")):
        (root / f"usr/local/sola-{version}").mkdir(parents=True)
        vendors.make_link(root, "/usr/local/sola", f"sola-{version}")
    (concern,) = concerns(tmp_path, target, SPU)
    assert concern == Concern("VersionMismatch", "SOLA: 3.5.0 in the container, 3.6.0 on the node")
