# SPDX-License-Identifier: Apache-2.0
"""`make gpu-check`: what only a machine with an NVIDIA GPU can show. It needs no Kubernetes.

The resolver against NVML and /dev, the holders that NVML and /proc know, and, as root, a CUDA call
that succeeds while the GPU is granted and fails once it is revoked. The GPUs are only opened;
nothing is reset or set.
"""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.nvidia import NvidiaProc
from devicemount_agent.allocation.resolver import Resolving
from devicemount_agent.allocation.said import Answer, Said, Subject
from devicemount_agent.graft import graft
from devicemount_agent.holders.search import Question, search
from devicemount_agent.model import Access, DeviceID, PodUID, ResourceName
from devicemount_agent.nvml import DRIVER, Nvml
from devicemount_agent.profiles.store import Profiles
from node.agent.containers import Lab

from .cuda import below, computing, cuda_error

ROOT = Path("/")
GPU = ResourceName("nvidia.com/gpu")

pytestmark = pytest.mark.skipif(
    not (ROOT / DRIVER).is_dir(), reason=f"no /{DRIVER} on this machine"
)


def resolved(uuid: str, directory: Path) -> Said:
    """Return what the agent would graft for the answer of NVIDIA's plugin in its default mode."""
    resolving = Resolving({"nvidiaProc": NvidiaProc(Host(ROOT))})
    subject = Subject(
        resource=GPU,
        ids=frozenset({DeviceID(uuid)}),
        answer=Answer(envs={"NVIDIA_VISIBLE_DEVICES": uuid}),
        profile=Profiles(directory).usual(GPU),
        shadow_uid=PodUID("none"),
    )
    said = asyncio.run(resolving.read(subject))
    assert said is not None
    return said


def test_every_gpu_is_the_node_that_nvml_names(minors: Mapping[str, int], tmp_path: Path) -> None:
    assert minors
    for uuid, minor in minors.items():
        nodes = {node.path: node for node in resolved(uuid, tmp_path).nodes}
        own = {path for path in nodes if path.removeprefix("/dev/nvidia").isdecimal()}
        assert own == {f"/dev/nvidia{minor}"}
        assert {"/dev/nvidiactl", "/dev/nvidia-uvm"} <= nodes.keys()
        for path, node in nodes.items():
            rdev = Path(path).stat().st_rdev
            assert (node.number.major, node.number.minor) == (os.major(rdev), os.minor(rdev)), path


def test_who_computes_is_a_holder_by_nvml_and_by_its_descriptors(
    minors: Mapping[str, int], tmp_path: Path, hold: Path, hierarchy: Lab
) -> None:
    gpus = frozenset(
        node.number
        for uuid, minor in minors.items()
        for node in resolved(uuid, tmp_path).nodes
        if node.path == f"/dev/nvidia{minor}"
    )
    question = Question(
        gpus,
        target=PodUID("target"),
        shadow=PodUID("shadow"),
        granted=frozenset(),
        hold=hold,
        cgroup_root=hierarchy.root,
    )
    with computing() as one:
        assert one.pid in {sighting.pid for sighting in search(question)}
        assert one.pid in Nvml(ROOT).users(gpus)
    assert one.pid not in {sighting.pid for sighting in search(question)}
    assert one.pid not in Nvml(ROOT).users(gpus)


def test_a_cuda_call_succeeds_while_granted_and_fails_once_revoked(
    minors: Mapping[str, int], tmp_path: Path, hierarchy: Lab
) -> None:
    want = {
        node.number: Access.READ | Access.WRITE
        for uuid in minors
        for node in resolved(uuid, tmp_path).nodes
    }
    box = hierarchy.container()
    cuda_error(*below(box))
    earlier = graft.earlier(box, want)
    graft.permit(box, want, earlier=earlier)
    with computing(*below(box)) as one:
        graft.permit(box, {}, earlier=earlier)
        cuda_error(*below(box))
        one.once_more()  # what is open stays open: hence the search for holders
    cuda_error(*below(box))
