# SPDX-License-Identifier: Apache-2.0
"""`make gpu-check`: what only a machine with an NVIDIA GPU can show. It needs no Kubernetes.

The resolver against NVML and /dev, the holders that NVML and /proc know, and, where the rights
suffice (root and a cgroup hierarchy of its own), a CUDA call that succeeds while the GPU is granted
and fails once it is revoked. The GPUs are only opened; nothing is reset or set.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest

from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.nvidia import NvidiaProc
from devicemount_agent.allocation.resolver import Resolving
from devicemount_agent.allocation.said import Answer, Said, Subject
from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.graft import graft
from devicemount_agent.holders import search
from devicemount_agent.model import Access, DeviceID, NodeType, PodUID, ResourceName
from devicemount_agent.nvml import DRIVER, Nvml
from devicemount_agent.profiles.store import Profiles
from node.agent.containers import HIERARCHIES, lab

ROOT = Path("/")
GPU = ResourceName("nvidia.com/gpu")
CUDA = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
device, context = ctypes.c_int(), ctypes.c_void_p()
for error in (
    cuda.cuInit(0),
    cuda.cuDeviceGet(ctypes.byref(device), 0),
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
):
    if error:
        sys.exit(f"CUDA error {error}")
print("computes", flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(
    not (ROOT / DRIVER).is_dir(), reason=f"no /{DRIVER} on this machine"
)


@pytest.fixture(scope="module")
def minors() -> Iterator[dict[str, int]]:
    """Return NVML's own list: UUID -> minor."""
    pynvml.nvmlInit()
    devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    yield {pynvml.nvmlDeviceGetUUID(d): pynvml.nvmlDeviceGetMinorNumber(d) for d in devices}
    pynvml.nvmlShutdown()


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


def test_every_gpu_is_the_node_that_nvml_names(minors: dict[str, int], tmp_path: Path) -> None:
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
    minors: dict[str, int], tmp_path: Path, hold: Path
) -> None:
    with computing() as process:
        numbers = frozenset(n.number for uuid in minors for n in resolved(uuid, tmp_path).nodes)
        gpus = {n for n in numbers if n.node_type is NodeType.CHAR and n.minor in minors.values()}
        whose = {"target": PodUID("t"), "shadow": PodUID("s"), "granted": frozenset(), "hold": hold}
        by_descriptor = search.search(frozenset(gpus), **whose)
        assert process.pid in {holder.pid for holder in by_descriptor}
        assert process.pid in Nvml(ROOT).users(gpus)


@pytest.mark.parametrize("version", list(CgroupVersion), ids=lambda version: version.value)
def test_a_cuda_call_succeeds_while_granted_and_fails_once_revoked(
    version: CgroupVersion, minors: dict[str, int], tmp_path: Path
) -> None:
    if os.geteuid() != 0 or not os.access(HIERARCHIES[version], os.W_OK):
        pytest.skip(f"needs root and a writable cgroup {version.value} hierarchy of its own")
    want = {
        node.number: Access.READ | Access.WRITE
        for uuid in minors
        for node in resolved(uuid, tmp_path).nodes
    }
    with lab(version, tmp_path) as made:
        box = made.container()
        inside = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(box.cgroup.path / "cgroup.procs")]
        earlier = graft.earlier(box, want)
        graft.permit(box, want, earlier=earlier)
        with computing(*inside):
            pass
        graft.permit(box, {}, earlier=earlier)
        with pytest.raises(AssertionError, match="CUDA error"), computing(*inside):
            pass


@contextmanager
def computing(*inside: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process with a CUDA context; AssertionError with its last words if it gets none."""
    with subprocess.Popen(
        [*inside, sys.executable, "-c", CUDA],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        if process.stdout.readline().strip() != "computes":
            raise AssertionError(process.stderr.read())
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait()
