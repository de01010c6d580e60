# SPDX-License-Identifier: Apache-2.0
"""The shadow pods' own process, the real one, where the kubelet and the runtime are stand-ins."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.kernel.files import lines_of
from node.agent.waiting import until

from .conftest import MOUNT_UID, Node, Shadow


@dataclass
class Fence:
    """A running `hold`, PID 1 of its own pid namespace, as the runtime has it."""

    node: Node
    shadow: Shadow
    container_id: str
    pid: int
    unshare: subprocess.Popen[bytes]

    def tell_deleted(self) -> None:
        """What the kubelet does first when the pod is being deleted."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it: its grace is over, or it was killed for memory."""
        self.node.runtime.containers[self.container_id].is_running = False
        os.kill(self.pid, signal.SIGKILL)
        self.unshare.wait()

    def vanish(self) -> None:
        """The pod is gone from kubelet and runtime, as after a deletion without grace."""
        self.node.kubelet.forget(self.shadow.pod)
        self.node.runtime.sandboxes.remove(self.shadow.pod)
        self.kill()

    def waits(self) -> bool:
        """Tell whether it takes signals by now."""
        return _waits(self.pid, "hold")

    def stands(self) -> bool:
        return self.unshare.poll() is None


@contextmanager
def fence(node: Node, shadow: Shadow, *, gate: Path | None = None) -> Iterator[Fence]:
    """Run the shadow pod's container until the end of the block, or until it ends.

    Behind a gate, a pipe, it is PID 1 already and takes no signal yet, until the pipe is written.
    """
    container_id = os.urandom(32).hex()
    cgroup = node.lab.top / f"pod{shadow.pod.uid}" / container_id
    node.lab.make(cgroup)
    begin = str(node.settings.hold)
    if gate is not None:
        os.mkfifo(gate)
        begin = f"sh -c 'read go < {gate}; exec {begin}'"
    join = f"echo $$ > {cgroup}/cgroup.procs; exec unshare --pid --fork --kill-child {begin}"
    with subprocess.Popen(["sh", "-c", join]) as unshare:
        try:
            shadow.pod.labels.setdefault("devicemount.io/shadow", MOUNT_UID)
            if shadow.pod not in node.runtime.sandboxes:
                node.runtime.sandboxes.append(shadow.pod)
            pid = _child(unshare.pid, "sh" if gate is not None else "hold")
            node.runtime.add(shadow.pod, "hold", container_id=container_id, pid=pid)
            yield Fence(node, shadow, container_id, pid, unshare)
        finally:
            node.runtime.containers.pop(container_id, None)
            unshare.kill()


def _child(pid: int, name: str) -> int:
    """Return the process that unshare has begun, once it has that name and waits."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    until(lambda: children.read_text() != "", what="unshare has a child")
    child = int(children.read_text())
    until(lambda: _waits(child, name), what=f"{name} waits")
    return child


def _waits(pid: int, name: str) -> bool:
    lines = set(lines_of(Path(f"/proc/{pid}/status")))
    return {f"Name:\t{name}", "State:\tS (sleeping)"} <= lines


def show_target(node: Node, name: str = "notebook-0") -> None:
    """Let the kubelet list the target pod too, as one that knows its pods does."""
    node.kubelet.shown["team-a", name] = ("notebook", {})
