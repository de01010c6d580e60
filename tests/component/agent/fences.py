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

    def stands(self) -> bool:
        return self.unshare.poll() is None


@contextmanager
def fence(node: Node, shadow: Shadow) -> Iterator[Fence]:
    """Run the shadow pod's container until the end of the block, or until it ends."""
    container_id = os.urandom(32).hex()
    cgroup = node.lab.top / f"pod{shadow.pod.uid}" / container_id
    node.lab.make(cgroup)
    join = f"echo $$ > {cgroup}/cgroup.procs; exec unshare --pid --fork --kill-child $0"
    with subprocess.Popen(["sh", "-c", join, str(node.settings.hold)]) as unshare:
        try:
            shadow.pod.labels.setdefault("devicemount.io/shadow", MOUNT_UID)
            if shadow.pod not in node.runtime.sandboxes:
                node.runtime.sandboxes.append(shadow.pod)
            pid = _child(unshare.pid)
            node.runtime.add(shadow.pod, "hold", container_id=container_id, pid=pid)
            yield Fence(node, shadow, container_id, pid, unshare)
        finally:
            node.runtime.containers.pop(container_id, None)
            unshare.kill()


def _child(pid: int) -> int:
    """Return the process that unshare has begun, once it is `hold` and waits for signals."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    until(lambda: children.read_text() != "", what="unshare has a child")
    child = int(children.read_text())
    status = Path(f"/proc/{child}/status")
    until(
        lambda: {"Name:\thold", "State:\tS (sleeping)"} <= set(lines_of(status)), what="hold waits"
    )
    return child


def show_target(node: Node, name: str = "notebook-0") -> None:
    """Let the kubelet list the target pod too, as one that knows its pods does."""
    node.kubelet.shown["team-a", name] = ("notebook", {})
