# SPDX-License-Identifier: Apache-2.0
"""Pods that open every device each millisecond and log what changes: who could open what, and when.

The clock is the machine's, which all nodes and containers share.
"""

import os
import select
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cluster.world import LOOP, VCS, World
from devicemount_testbed.api import Object, pod_path
from devicemount_testbed.vcs import NUMBERS

IMAGE = "localhost/scratch-target:1"
LOOK_MS = 50
PRIORITIES = "/apis/scheduling.k8s.io/v1/priorityclasses"
PATHS = (*(f"/dev/{name}" for name in NUMBERS), *(f"/dev/loop{number}" for number in range(4)))


@dataclass(frozen=True)
class Opened:
    """One stretch of time in which a tenant could open a device, or had it open."""

    node: str
    path: str
    tenant: str
    begin_ns: int
    end_ns: int | None  # None: it lasts
    how: str = "could open"

    def overlaps(self, later: "Opened") -> bool:
        is_same = (self.node, self.path) == (later.node, later.path)
        return is_same and (self.end_ns is None or self.end_ns >= later.begin_ns)


@contextmanager
def priority_classes(world: World, **classes: tuple[int, str]) -> Iterator[dict[str, str]]:
    """Make classes of these values and preemption policies; yields their names."""
    names = {role: f"{world.namespace}-{role}" for role in classes}
    for role, (value, policy) in classes.items():
        body = {"metadata": {"name": names[role]}, "value": value, "preemptionPolicy": policy}
        world.api.call("POST", PRIORITIES, body)
    yield names
    for name in names.values():
        world.api.delete(f"{PRIORITIES}/{name}")


def prober(node: str, *, limits: Object | None = None, **spec: object) -> Object:
    """Say what a pod is that opens all paths each millisecond and logs what changes."""
    main = {
        "name": "main",
        "image": IMAGE,
        "command": ["/target", "probe", "-", *PATHS],
        "resources": {"limits": limits or {}},
    }
    return {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 0,
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "containers": [main],
        **spec,
    }


def post(world: World, name: str, spec: Object) -> str:
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    world.api.call("POST", pod_path(world.namespace), body)
    return pod_path(world.namespace, name)


def runs(found: Object | None) -> bool:
    statuses = (found or {}).get("status", {}).get("containerStatuses") or []
    return bool(statuses) and all("running" in status["state"] for status in statuses)


def filled(world: World, node: str, priority: str) -> None:
    """Take what is left of the node's devices, so that who comes has to wait for one of ours."""
    limits = {resource: world.free(node, resource) for resource in (VCS, LOOP)}
    path = post(world, f"filler-{node}", prober(node, limits=limits, priorityClassName=priority))
    world.api.until(path, runs, deadline_s=60, what="running")


def started(world: World, name: str) -> None:
    world.api.until(pod_path(world.namespace, name), runs, deadline_s=60, what=f"{name} runs")


@dataclass
class Run:
    """One run of a container: its process is watched, and its log held open, so that neither its
    end nor its pod's deletion loses when it could open what."""

    tenant: str
    pid: int
    pidfd: int
    log: TextIO
    end_ns: int | None = None

    def opened(self, node: str) -> list[Opened]:
        """Read its log; what it could open last, it could until it ended."""
        kept = self.log.read().splitlines()
        said = (line.split(" ", 3)[3] for line in kept)  # after the runtime's time, stream and tag
        return stretches(said, node=node, tenant=self.tenant, end_ns=self.end_ns)


def stretches(
    said: Iterable[str], *, node: str, tenant: str, end_ns: int | None = None
) -> list[Opened]:
    """Return when a prober could open which device, by its own lines; `end_ns`: None, it runs."""
    found, since = [], {}
    for line in said:
        at, path, error = line.split()
        if error == "0":
            since.setdefault(path, int(at))
        elif path in since:
            found.append(Opened(node, path, tenant, since.pop(path), int(at)))
    return [*found, *(Opened(node, path, tenant, at, end_ns) for path, at in since.items())]


class Recorder:
    """Every run of every prober of a namespace on a node, while the block lasts."""

    def __init__(self, world: World, node: str) -> None:
        self._node = node
        self._logs = world.testbed.node_root(node) / "var/log/pods"
        self._pattern = f"{world.namespace}_*/main/*.log"
        self._runs: dict[Path, Run] = {}
        self._found: list[Opened] = []
        self._ends = select.poll()
        self._is_over = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> "Recorder":
        self._recording = self._thread.submit(self._record)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.shutdown()
        for run in self._runs.values():
            self._found += run.opened(self._node)
            os.close(run.pidfd)
            run.log.close()

    def opened(self) -> list[Opened]:
        """Return who could open what when, in this order. Raises what kept it from recording."""
        self._recording.result()
        return sorted(self._found, key=lambda one: one.begin_ns)

    def _record(self) -> None:
        by_pidfd = {}
        while not self._is_over.is_set():
            for run in self._begun():
                by_pidfd[run.pidfd] = run
                self._ends.register(run.pidfd, select.POLLIN)
            for pidfd, _ in self._ends.poll(LOOK_MS):
                by_pidfd[pidfd].end_ns = time.monotonic_ns()
                self._ends.unregister(pidfd)

    def _begun(self) -> Iterator[Run]:
        for path in sorted(self._logs.glob(self._pattern)):
            if path in self._runs:
                continue
            _, pod, uid = path.parent.parent.name.split("_")
            known = {run.pid for run in self._runs.values()}
            found = processes(in_cgroup=uid)
            probers = (pid for pid, said in found if said.startswith("/target\0probe\0"))
            pid = next((pid for pid in probers if pid not in known), None)
            if pid is not None:  # else it has not begun, and is looked for again
                tenant, log = f"run {path.stem} of {pod} {uid}", path.open()
                self._runs[path] = Run(tenant, pid, os.pidfd_open(pid), log)
                yield self._runs[path]


def processes(*, in_cgroup: str) -> Iterator[tuple[int, str]]:
    """Yield pid and command line (NUL after each word) of those in cgroups that are named so."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if in_cgroup in (process / "cgroup").read_text():
                yield int(process.name), (process / "cmdline").read_text()


def overlaps(opened: Sequence[Opened]) -> list[tuple[Opened, Opened]]:
    """Return which of them had the same device at the same time; in the order of their begin."""
    return [
        (former, later)
        for number, later in enumerate(opened)
        for former in opened[:number]
        if former.tenant != later.tenant and former.overlaps(later)
    ]
