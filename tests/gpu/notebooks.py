# SPDX-License-Identifier: Apache-2.0
"""Target containers that run, have the driver's libraries, and were started without a GPU."""

import logging
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum

import pytest

from component.agent.conftest import NAMESPACE, Node, Shadow, Target
from component.agent.fakes import FakePod
from devicemount_agent.allocation.said import Answer
from devicemount_agent.kernel.making import ROOT_OF_NODE
from node.agent.containers import FIRST_ID

from . import runc
from .cuda import below
from .image import furnish

GPU = "nvidia.com/gpu"
MOUNT_UID = "{}1111111-aaaa-4aaa-8aaa-111111111111"
CONTAINER = "notebook"
ENTER = 'cd / && exec "$@"'  # the working directory is still the one outside
OPEN = """
import os, sys
for path in sys.argv[1:]:
    try:
        os.open(path, os.O_RDWR)
    except OSError as error:
        print(path, error.strerror)
"""

log = logging.getLogger(__name__)


class Kind(Enum):
    """How a container is made."""

    PLAIN = "process with a root and a cgroup of its own"
    OWN_USERS = "the same in a user namespace of its own"
    RUNC = "runc"


@dataclass(frozen=True)
class Notebook:
    """A target, and how a program gets into it."""

    target: Target
    inside: tuple[str, ...]  # before its command line

    def device_files(self) -> dict[str, int]:
        """Return the driver's device files in the container, with their numbers."""
        found = (self.target.box.root / "dev").glob("nvidia*")
        return {f"/dev/{one.name}": one.stat().st_rdev for one in found if one.is_char_device()}

    def forget_device_files(self) -> None:
        """Remove what CUDA made by itself: a container's root may make them, not open them."""
        for path in (made := self.device_files()):
            (self.target.box.root / path.lstrip("/")).unlink()
        log.info("CUDA had made itself: %s", ", ".join(made) or "nothing")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.inside, *command], capture_output=True, text=True, check=False)

    def refused(self, *paths: str) -> set[str]:
        """Return which of these files cannot be opened there, with why."""
        return set(self.run(sys.executable, "-c", OPEN, *paths).stdout.splitlines())


@dataclass
class Notebooks:
    """Makes them, of one kind."""

    node: Node
    kind: Kind
    stack: ExitStack
    made: int = 0

    def start(self) -> Notebook:
        self.made += 1
        name, uid = f"notebook-{self.made}", MOUNT_UID.format(self.made)
        if self.kind is Kind.RUNC:
            return self.by_runc(runc.with_driver, name=name, uid=uid)
        own_users = self.kind is Kind.OWN_USERS
        target = self.node.target(name, own_users=own_users)
        target.mount_uid = uid
        furnish(target.box, owner=(FIRST_ID, FIRST_ID) if own_users else ROOT_OF_NODE)
        entering = ("nsenter", "--target", str(target.box.init_pid), "--mount", "--root")
        users = ("--user",) if own_users else ()
        return Notebook(target, (*below(target.box), *entering, *users, "sh", "-c", ENTER, "sh"))

    def by_runc(self, image: runc.Image, *, name: str = "notebook", uid: str = "") -> Notebook:
        """Start one of an image of one's own."""
        if runc.RUNC is None:
            pytest.skip("no runc on this machine")
        one = self.stack.enter_context(runc.container(self.node.lab, image))
        pod = FakePod(one.box.pod_uid, NAMESPACE, name)
        self.node.runtime.add(pod, CONTAINER, container_id=one.box.id, pid=one.box.init_pid)
        mount_uid = uid or MOUNT_UID.format(9)
        return Notebook(Target(pod, one.box, mount_uid), one.exec())

    def reserved(self, notebook: Notebook, uuid: str, *, replica: str = "") -> Shadow:
        """Let the kubelet give a GPU, or a time slice, as NVIDIA's plugin answers by default."""
        shadow = self.node.shadow(notebook.target, **{GPU: 1})
        answer = Answer(envs={"NVIDIA_VISIBLE_DEVICES": uuid})
        self.node.kubelet.choose(shadow.pod, GPU, {f"{uuid}{replica}": []}, answer=answer)
        return shadow
