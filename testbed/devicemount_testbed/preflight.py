# SPDX-License-Identifier: Apache-2.0
"""Says exactly what a machine lacks, and installs the Debian packages that can be installed.

Facts are read once; the judgement over them is pure, so that a test can give it any machine.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from devicemount_testbed.commands import output_of, run, run_with_progress
from devicemount_testbed.errors import MachineUnfit
from devicemount_testbed.layout import Layout

PACKAGES = (
    "buildah",  # images from the Dockerfiles
    "busybox-static",  # localhost/busybox:1
    "ca-certificates",
    "crun",  # where there is no newer one, see crun
    "dbus-daemon",  # of node3: crun and runc ask systemd over the bus. Not `dbus`, which starts one
    "dbus-system-bus-common",
    "debian-archive-keyring",
    "debootstrap",  # the base of the images
    "gcc",  # runc's seccomp binding, the test images' programs
    "libc6-dev",
    "libseccomp-dev",
    "nftables",  # kube-proxy's mode
    "patchelf",  # crun with libraries of its own
    "pkg-config",
    "systemd",  # PID 1 of node3; the machine's own PID 1 stays what it is
    "util-linux",  # nsenter, unshare
)
NO_CGROUP2 = "no cgroup v2 hierarchy is mounted (node2 and node3 need one)"
GO_LEAST = (1, 21)  # the first that fetches the toolchain which go.mod asks for
V1_NEEDED = ("cpu", "cpuacct", "cpuset", "devices", "memory", "pids")
# nodes have their own of these, so a cache below one of them would be out of their sight
HIDDEN_IN_NODES = ("/dev", "/proc", "/run", "/sys", "/var")


@dataclass(frozen=True, slots=True)
class Facts:
    """What preflight looks at."""

    uid: int
    system: str
    machine: str
    mounts: str  # /proc/self/mounts
    go_version: str | None  # what `go env GOVERSION` prints
    cache: Path
    missing_packages: tuple[str, ...]
    has_apt: bool


def find_problems(facts: Facts) -> tuple[str, ...]:
    """Return one sentence for each thing that a person must change."""
    problems = []
    if facts.uid != 0:
        problems.append("it must run as root (namespaces, mounts, cgroups)")
    if (facts.system, facts.machine) != ("Linux", "x86_64"):
        problems.append(f"it needs Linux on x86_64, this is {facts.system} on {facts.machine}")
    if cgroup2_root(facts.mounts) is None:
        problems.append(NO_CGROUP2)
    if lacking := [c for c in V1_NEEDED if c not in v1_hierarchies(facts.mounts)]:
        problems.append(f"no cgroup v1 hierarchy for {', '.join(lacking)} (node1 needs them)")
    problems.extend(_go_problems(facts.go_version))
    if any(facts.cache.is_relative_to(hidden) for hidden in HIDDEN_IN_NODES):
        problems.append(
            f"DEVICEMOUNT_CACHE is {facts.cache}, but nodes have their own "
            + ", ".join(HIDDEN_IN_NODES)
        )
    if facts.missing_packages and not facts.has_apt:
        problems.append(f"no apt-get to install {', '.join(facts.missing_packages)}")
    return tuple(problems)


def _go_problems(version: str | None) -> tuple[str, ...]:
    if version is None:
        return ("Go is not installed (no `go` in PATH or /usr/local/go/bin)",)
    found = re.match(r"go(\d+)\.(\d+)", version)
    if not found or (int(found[1]), int(found[2])) < GO_LEAST:
        return (f"Go {'.'.join(map(str, GO_LEAST))} or newer is needed, this is {version}",)
    return ()


def cgroup2_root(mounts: str) -> Path | None:
    """Return where the unified hierarchy is mounted, from the text of /proc/self/mounts."""
    for line in mounts.splitlines():
        _, target, kind, _ = line.split(maxsplit=3)
        if kind == "cgroup2":
            return Path(target)
    return None


def v1_hierarchies(mounts: str) -> dict[str, Path]:
    """Map each v1 controller, and each named hierarchy as name=..., to its mount point."""
    found: dict[str, Path] = {}
    for line in mounts.splitlines():
        _, target, kind, rest = line.split(maxsplit=3)
        if kind != "cgroup":
            continue
        options = set(rest.split()[0].split(",")) - {"rw", "ro", "relatime", "noatime"}
        found.update({option: Path(target) for option in options - {"nosuid", "nodev", "noexec"}})
    return found


def read_mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def find_go() -> str | None:
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")


def go_program() -> str:
    """Return the path of `go`; raise MachineUnfit if there is none."""
    go = find_go()
    if go is None:
        raise MachineUnfit(_go_problems(None))
    return go


def unified_root() -> Path:
    """Return where the unified hierarchy is mounted; raise MachineUnfit if nowhere."""
    root = cgroup2_root(read_mounts())
    if root is None:
        raise MachineUnfit([NO_CGROUP2])
    return root


def read_facts(layout: Layout) -> Facts:
    go = find_go()
    system = os.uname()
    return Facts(
        uid=os.getuid(),
        system=system.sysname,
        machine=system.machine,
        mounts=read_mounts(),
        go_version=output_of([go, "env", "GOVERSION"]).strip() if go else None,
        cache=layout.cache,
        missing_packages=missing_packages(),
        has_apt=shutil.which("apt-get") is not None,
    )


def missing_packages() -> tuple[str, ...]:
    if shutil.which("dpkg-query") is None:
        return PACKAGES
    listed = run(["dpkg-query", "-W", "-f=${Package} ${db:Status-Status}\n", *PACKAGES]).stdout
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
    return tuple(package for package in PACKAGES if package not in installed)


def prepare_machine(layout: Layout) -> None:
    """Raise MachineUnfit with every problem, or install the packages that are missing."""
    facts = read_facts(layout)
    if problems := find_problems(facts):
        raise MachineUnfit(problems)
    install_packages(layout)


def install_packages(layout: Layout) -> None:
    """Install what is missing; building images needs no more than this of the machine."""
    missing = missing_packages()
    if not missing:
        return
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    log = layout.log_of("apt")
    run_with_progress(["apt-get", "-q", "update"], what="apt-get update", log=log, env=env)
    run_with_progress(
        ["apt-get", "-qy", "install", "--no-install-recommends", *missing],
        what=f"installing {' '.join(missing)}",
        log=log,
        env=env,
    )
