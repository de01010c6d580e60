# SPDX-License-Identifier: Apache-2.0
"""A container whose runtime does not say what it is: by its pod's handler, and by its process."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicemount_agent.container.cri import ContainerFacts
from devicemount_agent.container.find import find
from devicemount_agent.errors import ContainerMismatch, UnsupportedRuntime
from devicemount_agent.model import ContainerID, PodUID
from devicemount_agent.requests import Target
from node.agent.waiting import until

POD = PodUID("6c8b5f3e-7d3a-4b8e-9a55-3f3f0d1c2b4a")
ID = ContainerID("ab" * 32)
TARGET = Target("team-a", "notebook-0", "notebook")


class Runtime:
    """Says of one container no more than its process, and its pod's runtime handler."""

    def __init__(self, pid: int, handler: str = "") -> None:
        self._pid = pid
        self._handler = handler

    async def running(self, pod_uid: PodUID, name: str | None = None) -> ContainerID:
        return ID

    async def container(self, container_id: ContainerID) -> ContainerFacts:
        return ContainerFacts(
            id=ID,
            pod_uid=POD,
            namespace="team-a",
            pod_name="notebook-0",
            name="notebook",
            is_running=True,
            pid=self._pid,
        )

    async def handler(self, pod_uid: PodUID) -> str:
        return self._handler


@pytest.mark.parametrize(
    ("handler", "refused"),
    [
        ("kata-qemu", "its runtime handler is kata-qemu: Kata Containers, a virtual machine"),
        ("gvisor", "its runtime handler is gvisor: gVisor, a kernel in user space"),
        ("runsc", "its runtime handler is runsc: gVisor, a kernel in user space"),
        ("wasmtime-spin-v2", "its runtime handler is wasmtime-spin-v2: WebAssembly"),
    ],
)
async def test_a_sandboxed_runtime_is_known_by_its_handler(handler: str, refused: str) -> None:
    with pytest.raises(UnsupportedRuntime) as caught:
        await find(Runtime(1, handler), TARGET, pod_uid=POD, hint=ID)
    assert str(caught.value) == refused


@pytest.fixture
def process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A process of a program of that name, in no container."""
    binary = tmp_path / request.param
    shutil.copy("/bin/sleep", binary)
    with subprocess.Popen([binary, "60"]) as started:
        exe = Path(f"/proc/{started.pid}/exe")
        until(lambda: exe.readlink() == binary, what="it runs")
        yield started.pid
        started.kill()


@pytest.mark.parametrize("process", ["qemu-system-x86_64", "qemu-kvm"], indirect=True)
async def test_a_virtual_machine_outside_of_the_containers_cgroup_is_no_mismatch(
    process: int,
) -> None:
    with pytest.raises(UnsupportedRuntime, match=r"its process is qemu-.*: a sandboxed runtime"):
        await find(Runtime(process, "crun"), TARGET, pod_uid=POD, hint=ID)


@pytest.mark.parametrize("process", ["sleep"], indirect=True)
async def test_any_other_process_outside_of_it_is_one(process: int) -> None:
    with pytest.raises(ContainerMismatch, match=f"not in container {ID} of pod {POD}"):
        await find(Runtime(process), TARGET, pod_uid=POD, hint=ID)
