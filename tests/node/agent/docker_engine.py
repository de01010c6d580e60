# SPDX-License-Identifier: Apache-2.0
"""Debian's Docker engine, unpacked into the cache and run from there: nothing is installed, and no
service of the machine is started or asked.

It has a cgroup, a socket and directories of its own, and takes them with it.
"""

import json
import os
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from devicemount_agent.container.cri import ContainerFacts
from devicemount_agent.model import ContainerID, PodUID
from devicemount_agent.requests import Target
from devicemount_testbed.layout import default_layout

from .containers import remove
from .waiting import until

PACKAGES = ("docker.io", "containerd", "runc")
IMAGE = "devicemount-test"
CGROUPS = Path("/sys/fs/cgroup")
NAMESPACE, POD, CONTAINER = "test", "pod", "main"
DAEMON_OPTIONS = (
    *("--bridge=none", "--iptables=false", "--ip6tables=false"),
    *("--ip-forward=false", "--ip-masq=false", "--storage-driver=vfs"),
    "--exec-opt=native.cgroupdriver=cgroupfs",
)


def unpacked() -> Path:
    """Return the root of the unpacked packages; fetch them once."""
    root = default_layout().cache / "docker"
    if not (root / "complete").exists():
        debs = root / "debs"
        debs.mkdir(parents=True, exist_ok=True)
        get = "apt-get --quiet=2 --option=APT::Sandbox::User=root"
        fetch = f"{get} download {' '.join(PACKAGES)}"
        subprocess.run(
            ["sh", "-c", f"{fetch} || {{ {get} update && {fetch}; }}"], cwd=debs, check=True
        )
        for deb in debs.glob("*.deb"):
            subprocess.run(["dpkg", "--extract", str(deb), str(root)], check=True)
        (root / "complete").touch()
    return root


@dataclass(frozen=True)
class Engine:
    """A running engine. Answers what cri-dockerd would make of it: everything but the pid."""

    socket: Path
    programs: Path
    cgroup: str

    def docker(self, *arguments: str, stdin: bytes | None = None) -> str:
        command = [str(self.programs / "usr/bin/docker"), f"--host=unix://{self.socket}"]
        done = subprocess.run([*command, *arguments], input=stdin, capture_output=True, check=True)
        return done.stdout.decode().strip()

    def run(self, pod_uid: PodUID, *command: str) -> ContainerID:
        """Start a container as the kubelet would have cri-dockerd start it."""
        labels = {
            "io.kubernetes.pod.uid": pod_uid,
            "io.kubernetes.pod.namespace": NAMESPACE,
            "io.kubernetes.pod.name": POD,
            "io.kubernetes.container.name": CONTAINER,
        }
        options = [f"--label={key}={value}" for key, value in labels.items()]
        parent = f"--cgroup-parent={self.cgroup}/pod{pod_uid}"
        return ContainerID(
            self.docker("run", "--detach", "--network=none", parent, *options, IMAGE, *command)
        )

    def sh(self, container_id: ContainerID, script: str) -> bool:
        """Say whether a script in the container succeeds."""
        try:
            self.docker("exec", container_id, "/bin/busybox", "sh", "-c", script)
        except subprocess.CalledProcessError:
            return False
        return True

    async def handler(self, pod_uid: PodUID) -> str:
        return ""

    async def running(self, pod_uid: PodUID, name: str | None = None) -> ContainerID | None:
        wanted = [f"--filter=label=io.kubernetes.pod.uid={pod_uid}"]
        if name is not None:
            wanted.append(f"--filter=label=io.kubernetes.container.name={name}")
        found = self.docker("ps", "--quiet", "--no-trunc", *wanted).split()
        return ContainerID(found[0]) if found else None

    async def container(self, container_id: ContainerID) -> ContainerFacts | None:
        said: Any = json.loads(self.docker("inspect", container_id))[0]
        labels = said["Config"]["Labels"]
        return ContainerFacts(
            id=ContainerID(said["Id"]),
            pod_uid=PodUID(labels["io.kubernetes.pod.uid"]),
            namespace=labels["io.kubernetes.pod.namespace"],
            pod_name=labels["io.kubernetes.pod.name"],
            name=labels["io.kubernetes.container.name"],
            is_running=said["State"]["Running"],
            pid=0,
        )

    def pid(self, container_id: ContainerID) -> int:
        return int(self.docker("inspect", "--format={{.State.Pid}}", container_id))


@contextmanager
def engine(scratch: Path) -> Iterator[Engine]:
    root = unpacked()
    made = Engine(scratch / "docker.sock", root, f"/devicemount-test-docker-{os.getpid()}")
    log = scratch / "dockerd.log"
    with log.open("wb") as out:
        daemon = subprocess.Popen(
            [
                str(root / "usr/sbin/dockerd"),
                f"--host=unix://{made.socket}",
                f"--data-root={scratch}/data",
                f"--exec-root={scratch}/exec",
                f"--pidfile={scratch}/pid",
                f"--cgroup-parent={made.cgroup}",
                *DAEMON_OPTIONS,
            ],
            env={"PATH": f"{root}/usr/bin:{root}/usr/sbin:{os.environ['PATH']}"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: made.socket.exists() and answers(made), what=f"dockerd answers, see {log}")
        made.docker("import", "-", IMAGE, stdin=busybox_root())
        yield made
    finally:
        if answers(made) and (left := made.docker("ps", "--all", "--quiet").split()):
            made.docker("rm", "--force", *left)
        daemon.terminate()
        daemon.wait(timeout=20)
        for cgroup in CGROUPS.glob(f"*{made.cgroup}"):
            for path in sorted(cgroup.rglob("*/"), reverse=True):
                remove(path)
            remove(cgroup)


def answers(made: Engine) -> bool:
    try:
        made.docker("version")
    except subprocess.CalledProcessError:
        return False
    return True


def busybox_root() -> bytes:
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add("/bin/busybox", arcname="bin/busybox")
    return archive.getvalue()


def target() -> Target:
    return Target(NAMESPACE, POD, CONTAINER)


def new_uid() -> PodUID:
    return PodUID(str(uuid.uuid4()))
