# SPDX-License-Identifier: Apache-2.0
"""A container under a systemd that keeps taking its grant away, watched from inside all along."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from cluster.world import DEADLINE_S, Pod, eventually
from devicemount_agent.graft import device_program, filter_v2
from devicemount_agent.kernel import bpf
from devicemount_agent.kernel.files import closing
from devicemount_testbed.devices import MANY_MAJOR
from devicemount_testbed.preflight import unified_root
from vendors.inside import first_process

MANY = "testbed.devicemount.io/many"
TARGET = "localhost/scratch-target:1"
FORBIDDEN, FORBIDDEN_MINOR = "/dev/forbidden", 256  # one more than there are
REFUSED, OPENED = 1, 6  # EPERM; ENXIO: the filter let it through, and nobody serves that major
EVERY_S = 1.0

Answers = list[tuple[int, int]]
"""What opening answered first and last, each time it changed: (CLOCK_MONOTONIC in ns, errno)."""


@dataclass(frozen=True)
class Container:
    """The target's only container, as the machine sees it."""

    pod: Pod
    id: str

    @classmethod
    def of(cls, pod: Pod) -> "Container":
        status = pod.object()["status"]["containerStatuses"][0]
        return cls(pod, status["containerID"].rpartition("/")[2])

    @property
    def root(self) -> Path:
        return Path(f"/proc/{first_process(self.id)}/root")

    @property
    def unit(self) -> str:
        return f"cri-containerd-{self.id}.scope"

    def cgroups(self) -> list[Path]:
        """Return its own cgroup and those below."""
        (top,) = (unified_root() / f"dmtb-{self.pod.node}").rglob(self.unit)
        return [top, *(path for path in top.rglob("*") if path.is_dir())]

    def programs(self) -> list[bpf.ProgramInfo]:
        found = []
        for cgroup in self.cgroups():
            for program_id in filter_v2.attached(cgroup):
                with closing(bpf.prog_get_fd_by_id(program_id)) as prog_fd:
                    found.append(bpf.prog_info(prog_fd))
        return found

    def granted(self) -> list[set[bytes]]:
        """Return what the list of each program of ours holds."""
        return [
            {key for map_id in program.map_ids for key in _keys(map_id)}
            for program in self.programs()
            if program.name == filter_v2.PROGRAM_NAME
        ]

    @contextmanager
    def probing(self, granted: str) -> Iterator[Callable[[], dict[str, Answers]]]:
        """Open both devices each millisecond in the container; the value tells the answers."""
        os.mknod(f"{self.root}{FORBIDDEN}", 0o20666, os.makedev(MANY_MAJOR, FORBIDDEN_MINOR))
        log = Path(f"{self.root}/answers")

        def answers() -> dict[str, Answers]:
            said: dict[str, Answers] = {granted: [], FORBIDDEN: []}
            for line in log.read_text().splitlines() if log.exists() else ():
                at_ns, path, error = line.split()
                said[path].append((int(at_ns), int(error)))
            return said

        with subprocess.Popen(
            self.pod.command("/target", "probe", "/answers", granted, FORBIDDEN),
            env=self.pod.world.testbed.kubectl_environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as prober:
            eventually(lambda: all(answers().values()), what="both devices are probed")
            try:
                yield answers
            finally:
                prober.terminate()
                prober.wait(timeout=DEADLINE_S)


def rage(container: Container, *, seconds: float) -> int:
    """Let systemd do each second one of what administrators and the kubelet let it do."""
    testbed, node = container.pod.world.testbed, container.pod.node
    began, times = time.monotonic(), 0
    events = cycle(
        (
            lambda: ["daemon-reload"],
            lambda: ["set-property", "--runtime", container.unit, f"TasksMax={1000 + times}"],
            lambda: ["daemon-reexec"],
        )
    )
    while time.monotonic() - began < seconds:
        done = testbed.exec(node, ["systemctl", *next(events)()])
        assert done.returncode == 0, done.stderr
        times += 1
        time.sleep(max(0.0, began + times * EVERY_S - time.monotonic()))
    return times


def outages_ms(answers: Answers) -> list[float]:
    """Return each gap between two opens that were let through, where one between them was not.

    However late the prober itself was: of it, too, an outage is never said to be too short.
    """
    found: list[float] = []
    opened_ns, is_out = None, False
    for at_ns, error in answers:
        if error != OPENED:
            is_out = True
            continue
        if is_out and opened_ns is not None:
            found.append((at_ns - opened_ns) / 1e6)
        opened_ns, is_out = at_ns, False
    return found


def _keys(map_id: int) -> set[bytes]:
    with closing(bpf.map_get_fd_by_id(map_id)) as map_fd:
        if bpf.map_info(map_fd).name != filter_v2.ALLOW_NAME:
            return set()
        return set(bpf.map_keys(map_fd, key_bytes=device_program.KEY_BYTES))
