# SPDX-License-Identifier: Apache-2.0
"""A node's file system as it is seen below a root directory: its links and its device nodes.

In the plugin's pod the node's /dev is /host/dev, so that an absolute link would lead into the
pod's own /dev: links are followed here, as they lead on the node.
"""

import os
import stat
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DEV = "/dev/"
MAX_LINKS = 40  # the kernel's own bound
MAX_ATTRIBUTE_BYTES = 4096  # a page: sysfs has no longer ones


@dataclass(frozen=True, slots=True, order=True)
class Number:
    """What the kernel knows a device by."""

    kind: str  # "char" or "block", as in /sys/dev
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


def below(root: Path, path: str) -> Path:
    """Say where a path of the node is found here."""
    return root / path.removeprefix("/")


def real_path(path: str, *, root: Path) -> str | None:
    """Follow every link as the node would; None if there are too many."""
    todo = deque(path.split("/"))
    done: list[str] = []
    links = 0
    while todo:
        part = todo.popleft()
        if part == "..":
            del done[-1:]
        elif part not in ("", "."):
            target = _link(root.joinpath(*done, part))
            if target is None:
                done.append(part)
                continue
            links += 1
            if links > MAX_LINKS:
                return None
            if target.startswith("/"):
                done.clear()
            todo.extendleft(reversed(target.split("/")))
    return "/" + "/".join(done)


def number_at(path: str, *, root: Path) -> Number | None:
    """Return the number of the device node at a path, links followed, if it is one of /dev."""
    real = real_path(path, root=root)
    if real is None or not real.startswith(DEV):
        return None
    try:
        return _number(below(root, real).lstat())
    except OSError:  # absent, or gone since
        return None


def nodes_by_number(*, root: Path) -> Mapping[Number, str]:
    """Return the path of each device node below /dev, the first where a number has several."""
    found: dict[Number, str] = {}
    for path, status in _walk(root / "dev"):
        number, name = _number(status), f"/{path.relative_to(root)}"
        if number is not None and is_text(name):
            found[number] = min(name, found.get(number, name))
    return found


def is_text(path: str) -> bool:
    """Whether a path is UTF-8: no other can be told to the kubelet, or be remembered."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_attribute(path: Path) -> str | None:
    """Return what a file of sysfs says, without the line's end; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_ATTRIBUTE_BYTES).decode(errors="replace").strip()
    except OSError:  # absent, or the driver refuses
        return None


def link_name(path: Path) -> str | None:
    """Return the last part of a link's target: sysfs names drivers and subsystems so."""
    target = _link(path)
    return None if target is None else target.rpartition("/")[2]


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:  # no link, or nothing there
        return None


def _number(status: os.stat_result) -> Number | None:
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if stat.S_ISCHR(status.st_mode):
        return Number("char", major, minor)
    if stat.S_ISBLK(status.st_mode):
        return Number("block", major, minor)
    return None


def _walk(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield what is below a directory, without links and other file systems (pts, shm)."""
    try:
        device = top.stat().st_dev
    except OSError:
        return
    todo = [top]
    while todo:
        try:
            entries = list(os.scandir(todo.pop()))
        except OSError:  # a directory that has gone since
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield Path(entry.path), status
            elif status.st_dev == device:
                todo.append(Path(entry.path))
