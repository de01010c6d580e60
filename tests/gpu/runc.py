# SPDX-License-Identifier: Apache-2.0
"""Containers by runc itself, with the capabilities and the device filter that Kubernetes' have.

runc is the machine's, or the testbed's where that was built.
"""

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from devicemount_agent.container.cgroup import container_cgroup
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import ContainerID, PodUID
from node.agent.containers import HIERARCHIES, Box, Lab, StandIn

from . import mounts
from .image import entries

TESTBED = Path("~/.cache/devicemount/bin").expanduser()
DEFAULT_CAPABILITIES = [  # containerd's
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]
CAPABILITY_SETS = ("bounding", "effective", "permitted")
KEPT_NAMESPACES = {"pid", "ipc", "uts", "mount"}


def program(name: str) -> str | None:
    """Return where a program is, also among those that the testbed has built."""
    return shutil.which(name) or shutil.which(name, path=str(TESTBED))


RUNC = program("runc")

Spec = dict[str, Any]  # config.json; JSON of somebody else's
Image = Callable[[Path, Spec], None]  # fills the root directory, changes the spec


@dataclass(frozen=True)
class Runc:
    """One container."""

    box: Box
    state: Path

    def exec(self) -> tuple[str, ...]:
        """Return what comes before a command line that is to run in it."""
        assert RUNC
        return (RUNC, "--root", str(self.state), "exec", self.box.id)


@contextmanager
def container(lab: Lab, image: Image) -> Iterator[Runc]:
    """Run a container of this image, with no device, until the end of the block."""
    assert RUNC
    pod, container_id = PodUID(str(uuid.uuid4())), ContainerID(os.urandom(32).hex())
    bundle = lab.scratch / container_id
    bundle.mkdir()
    lab.make(lab.top / f"pod{pod}")
    below = lab.top.relative_to(HIERARCHIES[lab.version])
    describe(bundle, image, cgroup=f"/{below}/pod{pod}/{container_id}")
    runc = (RUNC, "--root", str(lab.scratch / "runc"))
    running = ("run", "--detach", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"))
    subprocess.run(
        [*runc, *running, container_id],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        pid = int((bundle / "pid").read_text())
        with closing(os.pidfd_open(pid)) as pidfd, closing(_root(pid)) as root_fd:
            box = Box(
                id=container_id,
                pod_uid=pod,
                name="test",
                pidfd=pidfd,
                root_fd=root_fd,
                cgroup=container_cgroup(pid, container_id=container_id, pod_uid=pod, root=lab.root),
                inside=StandIn(pid),
            )
            yield Runc(box, lab.scratch / "runc")
    finally:
        subprocess.run([*runc, "delete", "--force", container_id], check=True)


def describe(bundle: Path, image: Image, *, cgroup: str) -> None:
    """Write the bundle: runc's own default, with what Kubernetes changes in it."""
    assert RUNC
    subprocess.run([RUNC, "spec"], cwd=bundle, check=True)
    spec: Spec = json.loads((bundle / "config.json").read_text())
    spec["process"] |= {
        "terminal": False,
        "args": ["sleep", "infinity"],
        "env": [f"PATH={os.environ['PATH']}"],
        "capabilities": dict.fromkeys(CAPABILITY_SETS, DEFAULT_CAPABILITIES),
    }
    spec["root"] = {"path": "rootfs", "readonly": False}
    spec["mounts"] = [m for m in spec["mounts"] if m["type"] != "cgroup"]
    spec["linux"]["cgroupsPath"] = cgroup
    spec["linux"]["namespaces"] = [
        one for one in spec["linux"]["namespaces"] if one["type"] in KEPT_NAMESPACES
    ]
    (bundle / "rootfs").mkdir()
    image(bundle / "rootfs", spec)
    (bundle / "config.json").write_text(json.dumps(spec))


def with_driver(root: Path, spec: Spec) -> None:
    """Bind this machine's files: the driver's libraries are among them."""
    for entry in entries():
        if entry.is_symlink():
            (root / entry.name).symlink_to(entry.readlink())
        else:
            options = ["rbind", "ro", "rprivate"]
            bind = {"destination": str(entry), "source": str(entry), "options": options}
            spec["mounts"].append(bind | {"type": "bind"})
    (root / "tmp").mkdir(mode=0o777)
    if libraries := os.environ.get("LD_LIBRARY_PATH"):
        spec["process"]["env"].append(f"LD_LIBRARY_PATH={libraries}")


@contextmanager
def layered(scratch: Path) -> Iterator[Image]:
    """Give an image that is a copy of this machine's root file system, to be changed at will.

    Without what is mounted below it. Needs mounts of one's own.
    """
    with ExitStack() as stack, mounts.gone_at_the_end() as made:

        def fill(root: Path, _: Spec) -> None:
            layers = Path(stack.enter_context(TemporaryDirectory(dir=scratch)))
            mounts.mount("tmpfs", layers, "")
            made.append(layers)
            upper, work = layers / "upper", layers / "work"
            upper.mkdir()
            work.mkdir()
            mounts.mount("overlay", root, f"lowerdir=/,upperdir={upper},workdir={work}")
            made.append(root)

        yield fill


def _root(pid: int) -> int:
    return os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
