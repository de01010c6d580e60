# SPDX-License-Identifier: Apache-2.0
"""Long-running processes, each known by pid and start time, so that a reused pid is never killed.

A process is born behind a gate: a shell that waits for one line and then becomes the program.
Its pid and start time are written to the record before the gate opens; if the testbed dies
between, the gate's pipe closes and the shell ends. So nothing ever runs unrecorded.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devicemount_testbed.errors import ComponentDied, Timeout

STDERR = 2
# $0 is the program; its standard input is not the gate's pipe but /dev/null
GATE = 'read -r _ && exec "$0" "$@" </dev/null'


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the testbed; `start_ticks` is field 22 of /proc/<pid>/stat."""

    component: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Gated:
    """A process that waits behind its gate."""

    process: Process
    gate: int

    def open(self) -> None:
        os.write(self.gate, b"go\n")
        os.close(self.gate)


def keep_descriptors_private() -> None:
    """Let no long-running process inherit what the caller has open, for example a lock."""
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if fd > STDERR:
            with contextlib.suppress(OSError):  # the listing's own, closed again
                os.set_inheritable(fd, False)  # noqa: FBT003  has no name


def spawn_gated(
    argv: Sequence[str], *, component: str, log: Path, env: Mapping[str, str] | None = None
) -> Gated:
    """Start `argv` in a session of its own behind a gate; the caller records it, then opens."""
    reader, writer = os.pipe()
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", GATE, *argv],
            dict(env if env is not None else os.environ),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, reader, 0),
                (os.POSIX_SPAWN_DUP2, sink, 1),
                (os.POSIX_SPAWN_DUP2, sink, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(sink)
        os.close(reader)
    ticks = start_ticks(pid)
    if ticks is None:  # not by itself: we hold the other end of its pipe
        os.close(writer)
        raise ComponentDied(component=component, log=log)
    return Gated(process=Process(component=component, pid=pid, start_ticks=ticks), gate=writer)


def start_ticks(pid: int) -> int | None:
    """Return the start time in clock ticks since boot, or None for no process or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the command name may hold spaces and brackets
    state, ticks = fields[0], int(fields[19])
    return None if state in "ZX" else ticks


def is_running(process: Process) -> bool:
    return start_ticks(process.pid) == process.start_ticks


def children_of(pid: int) -> tuple[int, ...]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(int(child) for child in text.split())


def kill_and_wait(process: Process, *, seconds: float) -> None:
    """Kill exactly this process and wait for its end; a process already gone is fine."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if not is_running(process):  # asked after pidfd_open: the pidfd is this process or none
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        wait_for_exit(pidfd, what=process.component, deadline=time.monotonic() + seconds)
    finally:
        os.close(pidfd)


def wait_for_exit(pidfd: int, *, what: str, deadline: float) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise Timeout(what=f"end of {what}", seconds=0, hint="the kernel keeps the process")
