# SPDX-License-Identifier: Apache-2.0
"""A container that runc makes of a spec, as containerd would have it make a shadow pod's."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devicemount_agent.allocation.bundle import TASKS
from devicemount_agent.container.cri import ContainerFacts
from devicemount_agent.model import ContainerID, PodUID

from .containers import remove
from .docker_engine import CGROUPS, unpacked

NAMESPACES = ("pid", "mount", "ipc", "uts", "network")
KERNELS_OWN = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
)


@dataclass
class Running:
    """A runtime whose only container is this one."""

    state: Path  # of containerd: it has the bundle below it
    asked: frozenset[str]  # mounts that the kubelet would have asked for
    pod_uid: PodUID = field(default_factory=lambda: PodUID(str(uuid.uuid4())))
    id: ContainerID = field(default_factory=lambda: ContainerID(os.urandom(32).hex()))
    pid: int = 0

    @property
    def bundle(self) -> Path:
        return self.state / TASKS / self.id

    async def running(self, pod_uid: PodUID, name: str | None = None) -> ContainerID | None:
        return self.id

    async def container(self, container_id: ContainerID) -> ContainerFacts | None:
        return ContainerFacts(
            id=self.id,
            pod_uid=self.pod_uid,
            namespace="test",
            pod_name="pod",
            name="hold",
            is_running=True,
            pid=self.pid,
            mounts=self.asked,
        )


@contextmanager
def started(
    scratch: Path, program: Path, spec: Mapping[str, Any], *, asked: frozenset[str]
) -> Iterator[Running]:
    """Run a program as a container's only process; the spec's lists come after the usual ones."""
    made = Running(scratch / "run/containerd", asked)
    root = made.bundle / "rootfs"
    root.mkdir(parents=True)
    (root / program.name).write_bytes(program.read_bytes())
    (root / program.name).chmod(0o755)
    top = f"/devicemount-test-runc-{os.getpid()}"
    content = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"cwd": "/", "args": [f"/{program.name}"], "env": ["PATH=/", *spec["env"]]},
        "mounts": [*KERNELS_OWN, *spec["mounts"]],
        "hooks": spec["hooks"],
        "linux": {
            "namespaces": [{"type": name} for name in NAMESPACES],
            "cgroupsPath": f"{top}/pod{made.pod_uid}/{made.id}",
            "devices": spec["devices"],
            "resources": {"devices": [{"allow": False, "access": "rwm"}, *spec["rules"]]},
        },
    }
    (made.bundle / "config.json").write_text(json.dumps(content))
    command = [str(unpacked() / "usr/sbin/runc"), f"--root={scratch}/runc"]
    pid_file = scratch / "pid"
    run = [*command, "run", "--detach", f"--bundle={made.bundle}", f"--pid-file={pid_file}"]
    try:
        nothing = subprocess.DEVNULL
        subprocess.run([*run, made.id], check=True, stdin=nothing, stdout=nothing)
        made.pid = int(pid_file.read_text())
        yield made
    finally:
        subprocess.run([*command, "delete", "--force", made.id], check=True)
        for cgroup in CGROUPS.glob(f"*{top}"):
            for path in sorted(cgroup.rglob("*/"), reverse=True):
                remove(path)
            remove(cgroup)
