# SPDX-License-Identifier: Apache-2.0
"""What a running container has, seen from the machine: no shell and no program in it is needed.

A picture holds every file, node and link of its root and every mount of its mount namespace, so
that two pictures tell exactly what has come and what is left.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vendor_answers import Case
from vendors.answers import Json

NOT_LOOKED_AT = ("/proc", "/sys")


@dataclass(frozen=True, order=True)
class Node:
    """A device node: "c 195:0", its mode and its owner."""

    number: str
    mode: str
    uid: int
    gid: int


@dataclass(frozen=True, order=True)
class Mount:
    """One mount: what it shows and how."""

    source: str  # the path in its file system
    is_read_only: bool
    options: frozenset[str]  # of nosuid, nodev, noexec


@dataclass(frozen=True)
class Picture:
    """All that a container has, by its paths in it."""

    nodes: Mapping[str, Node]
    links: Mapping[str, str]
    mounts: Mapping[str, Mount]
    others: frozenset[str]  # files and directories

    def since(self, before: "Picture") -> "Picture":
        """Return what has come since; nothing may have gone or changed."""
        for now, then in (
            (self.nodes, before.nodes),
            (self.links, before.links),
            (self.mounts, before.mounts),
        ):
            assert {path: now.get(path) for path in then} == dict(then)
        assert before.others <= self.others
        return Picture(
            {path: node for path, node in self.nodes.items() if path not in before.nodes},
            {path: link for path, link in self.links.items() if path not in before.links},
            {path: mount for path, mount in self.mounts.items() if path not in before.mounts},
            self.others - before.others,
        )

    def numbers(self) -> dict[str, str]:
        return {path: node.number for path, node in self.nodes.items()}


def picture(container_id: str) -> Picture:
    """Take a picture of the container with that id (as the pod's status has it)."""
    process = Path(f"/proc/{first_process(container_id)}")
    root = process / "root"
    nodes: dict[str, Node] = {}
    links: dict[str, str] = {}
    others: set[str] = set()
    for path, found in _walk(root):
        if stat.S_ISLNK(found.st_mode):
            links[path] = str((root / path.lstrip("/")).readlink())
        elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            nodes[path] = _node(found)
        else:
            others.add(path)
    return Picture(nodes, links, mounts_of(process), frozenset(others))


def first_process(container_id: str) -> int:
    """Return the machine's pid of the container's init."""
    bare = container_id.rpartition("/")[2]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if bare not in (process / "cgroup").read_text():
                continue
            status = (process / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        inside = next(line for line in status.splitlines() if line.startswith("NSpid:"))
        if inside.split()[-1] == "1":
            return int(process.name)
    raise AssertionError(f"{container_id} does not run")


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    for top, directories, files in os.walk(root):
        at = "/" + os.path.relpath(top, root).removeprefix(".")
        at = "" if at == "/" else at
        for name in (*directories, *files):
            yield f"{at}/{name}", os.lstat(f"{top}/{name}")
        directories[:] = [name for name in directories if f"{at}/{name}" not in NOT_LOOKED_AT]


def _node(found: os.stat_result) -> Node:
    kind = "c" if stat.S_ISCHR(found.st_mode) else "b"
    number = f"{kind} {os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return Node(number, oct(stat.S_IMODE(found.st_mode)), found.st_uid, found.st_gid)


def mounts_of(process: Path) -> dict[str, Mount]:
    """Return what a process sees mounted, by path; the machine's /proc/PID says which."""
    mounts = {}
    for line in (process / "mountinfo").read_text().splitlines():
        fields = line.split()
        options = set(fields[5].split(","))
        kept = frozenset(options & {"nosuid", "nodev", "noexec"})
        mounts[fields[4]] = Mount(fields[3], "ro" in options, kept)
    return mounts


def expected_nodes(case: Case, fake_root: Json) -> dict[str, Node]:
    """Return the nodes that a case says are in the target, each as it is on that machine."""
    on_host = {
        one["path"]: Node(
            f"{one['type']} {one['major']}:{one['minor']}",
            oct(int(one["mode"], 8)),
            one["uid"],
            one["gid"],
        )
        for one in fake_root["device_nodes"]
    }
    return {one["path"]: on_host[one["host_path"]] for one in case.nodes()}
