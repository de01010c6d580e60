# SPDX-License-Identifier: Apache-2.0
"""Containers without a runtime: a cgroup with a filter, a root, a process that obeys.

Everything is below one cgroup per hierarchy that this test process made, and goes with it.
"""

import json
import os
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from devicemount_agent.container.cgroup import Cgroup, CgroupVersion, container_cgroup
from devicemount_agent.container.runtimes import UNKNOWN, RuntimeFacts
from devicemount_agent.errors import TargetNotRunning
from devicemount_agent.kernel import pidfd
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import ContainerID, DeviceNumber, PodUID

from . import programs
from .waiting import until

FREEZER = Path("/sys/fs/cgroup/freezer")
HIERARCHIES = {
    CgroupVersion.V1: Path("/sys/fs/cgroup/devices"),
    CgroupVersion.V2: Path("/sys/fs/cgroup/unified"),
}
NULL = DeviceNumber("c", 1, 3)
MS_NODEV, MS_RDONLY = 4, 1
FUSE_BUFFER_BYTES = 1 << 20  # more than any request
FIRST_ID = 100000  # on the node: of a container with a user namespace of its own
ACTOR = Path(__file__).with_name("actor.py")


def cgroup_root(version: CgroupVersion) -> Path:
    """Return what the agent would have at /sys/fs/cgroup on a node of this version."""
    return HIERARCHIES[version].parent if version is CgroupVersion.V1 else HIERARCHIES[version]


@dataclass
class Actor:
    """A process of a container, or one outside of all."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, command: str, *arguments: str | int) -> int | None:
        """Let it do something. Raises OSError with what it got."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self.process.stdin.flush()
        kind, value = json.loads(self.process.stdout.readline())
        if kind == "errno":
            raise OSError(value, os.strerror(value))
        return value

    def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        fd = self.tell("open_file", path, flags)
        assert fd is not None
        return fd

    def close(self, fd: int) -> None:
        self.tell("close", fd)

    def can_open(self, path: str, flags: int = os.O_RDONLY) -> bool:
        """Open and close; False only for what a device filter answers."""
        try:
            self.close(self.open(path, flags))
        except PermissionError:
            return False
        return True

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            stream.close()


@contextmanager
def actor(*, pass_fds: tuple[int, ...] = (), own_users: bool = False) -> Iterator[Actor]:
    process = subprocess.Popen(
        ["unshare", "--mount", sys.executable, ACTOR, *(["own-users"] if own_users else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=pass_fds,
        text=True,
    )
    started = Actor(process)
    try:
        if own_users:
            map_users(started)
        yield started
    finally:
        started.end()


@dataclass
class Box:
    """What the agent's `Container` is, and the process in it."""

    id: ContainerID
    pod_uid: PodUID
    name: str
    pidfd: int
    root_fd: int
    cgroup: Cgroup
    inside: "Actor | StandIn"
    runtime: RuntimeFacts = UNKNOWN
    mounts: frozenset[str] = frozenset()

    @property
    def init_pid(self) -> int:
        return self.inside.pid

    def check(self) -> None:
        if self.pidfd >= 0 and pidfd.has_ended(self.pidfd):
            raise TargetNotRunning(self.name)

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.init_pid}/root")


@dataclass
class StandIn:
    """A process that the runtime would call a container's, without a cgroup of ours."""

    pid: int

    @classmethod
    @contextmanager
    def running(cls, *command: str) -> Iterator["StandIn"]:
        process = subprocess.Popen(command)
        try:
            yield cls(process.pid)
        finally:
            process.kill()
            process.wait()

    def program(self) -> str:
        return Path(f"/proc/{self.pid}/exe").readlink().name

    def container(self) -> Box:
        path = HIERARCHIES[CgroupVersion.V1]
        return Box(
            id=ContainerID(""),
            pod_uid=PodUID(""),
            name="stand-in",
            pidfd=-1,
            root_fd=-1,
            cgroup=Cgroup(CgroupVersion.V1, path, path),
            inside=self,
        )


@dataclass
class Lab:
    """Makes containers of one cgroup version."""

    version: CgroupVersion
    scratch: Path
    top: Path
    stack: ExitStack
    pods: set[PodUID] = field(default_factory=set)

    @property
    def root(self) -> Path:
        return cgroup_root(self.version)

    def container(
        self,
        *,
        pod_uid: PodUID | None = None,
        dev_flags: int = 0,
        below: str = "",
        own_users: bool = False,
        pass_fds: tuple[int, ...] = (),
        restrict: Callable[[Path], None] | None = None,
    ) -> Box:
        """Start a container that may use /dev/null only, unless `restrict` says otherwise."""
        pod = pod_uid or PodUID(str(uuid.uuid4()))
        self.pods.add(pod)
        container_id = ContainerID(os.urandom(32).hex())
        cgroup = self.top / f"pod{pod}" / container_id
        self.make(cgroup)
        (restrict or self.allow_null_only)(cgroup)
        leaf = cgroup / below
        self.make(leaf)
        inside = self.stack.enter_context(actor(pass_fds=pass_fds, own_users=own_users))
        (leaf / "cgroup.procs").write_text(str(inside.pid))
        root = Path("/tmp") if own_users else self.scratch / f"root-{inside.pid}"
        root.mkdir(exist_ok=True)  # in its own mounts only: others' are out of its reach
        enter_root(inside, root, dev_flags=dev_flags)
        return Box(
            id=container_id,
            pod_uid=pod,
            name="test",
            pidfd=self.stack.enter_context(closing(os.pidfd_open(inside.pid))),
            root_fd=self.stack.enter_context(
                closing(os.open(f"/proc/{inside.pid}/root", os.O_PATH | os.O_CLOEXEC))
            ),
            cgroup=container_cgroup(
                inside.pid, container_id=container_id, pod_uid=pod, root=self.root
            ),
            inside=inside,
        )

    def make(self, cgroup: Path) -> None:
        """Make a cgroup and those above it, which go in reverse order."""
        for path in (*reversed(cgroup.parents), cgroup):
            if path.is_relative_to(self.top) and not path.exists():
                path.mkdir()
                self.stack.callback(remove, path)

    def allow_null_only(self, cgroup: Path) -> None:
        match self.version:
            case CgroupVersion.V1:
                (cgroup / "devices.deny").write_text("a")
                for rule in ("c *:* m", "b *:* m", "c 1:3 rwm"):
                    (cgroup / "devices.allow").write_text(rule)
            case CgroupVersion.V2:
                self.keep(programs.attach(cgroup, programs.allow_list([NULL])))

    def keep(self, fd: int) -> int:
        """Keep a descriptor until the end of the test, as systemd keeps that of its programs."""
        return self.stack.enter_context(closing(fd))


def enter_root(inside: Actor, root: Path, *, dev_flags: int) -> None:
    inside.tell("mount", "tmpfs", str(root), "tmpfs", 0)
    inside.tell("make_directory", str(root / "dev"))
    inside.tell("mount", "tmpfs", str(root / "dev"), "tmpfs", dev_flags)
    inside.tell("enter_root", str(root))


def map_users(inside: Actor) -> None:
    """Make it root of its user namespace, and of a mount namespace of that: hostUsers: false."""
    assert inside.process.stdin and inside.process.stdout
    assert inside.process.stdout.readline() == "unmapped\n"
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{inside.pid}/{name}").write_text(f"0 {FIRST_ID} 65536\n")
    inside.process.stdin.write("mapped\n")
    inside.process.stdin.flush()


def remove(cgroup: Path) -> None:
    """Remove a cgroup whose processes have ended (their exit may still be under way)."""

    def is_removed() -> bool:
        try:
            cgroup.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    until(is_removed, what=f"{cgroup} is empty")


@contextmanager
def lab(version: CgroupVersion, scratch: Path) -> Iterator[Lab]:
    top = HIERARCHIES[version] / f"devicemount-test-{os.getpid()}"
    with ExitStack() as stack:
        made = Lab(version=version, scratch=scratch, top=top, stack=stack)
        made.make(top)
        yield made


@contextmanager
def in_freezer(box: Box) -> Iterator[Path]:
    """Give a container of cgroup v1 its cgroup in the hierarchy that freezes, as runtimes do."""
    pod = FREEZER / box.cgroup.path.relative_to(box.cgroup.hierarchy).parent
    own = pod / box.id
    own.mkdir(parents=True)
    (own / "cgroup.procs").write_text(str(box.init_pid))
    try:
        yield own
    finally:
        thaw(own)
        for pid in (own / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                (FREEZER / "cgroup.procs").write_text(pid)
        for made in (own, pod, pod.parent):
            remove(made)


def wait_for_silent_server(box: Box, fd: int) -> int:
    """Let a process of a container, which has this end of FUSE too, wait in the kernel until the
    caller closes its own; nobody can stop it meanwhile."""
    box.inside.tell("make_directory", "/silent")
    box.inside.tell("mount_silent_server", "/silent", fd, "40000")
    unique = struct.unpack_from("<Q", os.read(fd, FUSE_BUFFER_BYTES), 8)[0]
    os.write(fd, struct.pack("<IiQ II 56x", 80, 0, unique, 7, 31))  # FUSE_INIT's, of version 7.31
    pid = box.inside.tell("wait_for_server", "/silent", fd)
    box.inside.close(fd)
    os.read(fd, FUSE_BUFFER_BYTES)  # what it asks
    assert pid is not None
    return pid


def thaw(own: Path) -> None:
    is_v1 = (own / "freezer.state").exists()
    (own / ("freezer.state" if is_v1 else "cgroup.freeze")).write_text("THAWED" if is_v1 else "0")
