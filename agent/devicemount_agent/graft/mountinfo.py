# SPDX-License-Identifier: Apache-2.0
"""What is mounted where, as a process sees it (/proc/<pid>/mountinfo)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from devicemount_agent.kernel.files import closing, lines_from, lines_of
from devicemount_agent.kernel.namespace import mountinfo_of

# A server answers for these, who may be the tenant's own, or gone: whoever asks may wait for ever.
SERVED = ("fuse", "nfs", "9p", "ceph", "cifs", "smb", "virtiofs")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount."""

    id: int
    device: str  # "8:1"
    root: str  # which part of its file system
    point: PurePosixPath
    is_shared: bool  # what is mounted below it appears elsewhere too
    kind: str
    is_read_only: bool = False
    is_nodev: bool = False  # no device file on it can be opened

    def is_served(self) -> bool:
        return self.kind.startswith(SERVED)


def mounts_of(process: Path) -> tuple[Mounted, ...]:
    """Return a process's mounts, in the order in which they were made. Raises OSError."""
    return parsed(lines_of(process / "mountinfo"))


def mounts_in(namespace_fd: int) -> tuple[Mounted, ...]:
    """Return a mount namespace's mounts (of a pidfd: the process's), whatever root it has made
    its own. Raises OSError.
    """
    with closing(mountinfo_of(namespace_fd)) as fd:
        return parsed(lines_from(fd))


def parsed(lines: Iterable[str]) -> tuple[Mounted, ...]:
    """Return the mounts of a mountinfo file."""
    return tuple(map(_parsed, lines))


def by_id(mounts: Iterable[Mounted], mount_id: int) -> Mounted | None:
    return next((mounted for mounted in mounts if mounted.id == mount_id), None)


def served_above(mounts: Iterable[Mounted], path: PurePosixPath) -> Mounted | None:
    """Return a mount that a server answers for, on the way to the path or at it."""
    way = {path, *path.parents}
    return next((m for m in mounts if m.is_served() and m.point in way), None)


@lru_cache(maxsize=1024)  # a container's mounts are looked at several times in one grant
def _parsed(line: str) -> Mounted:
    """Parse `id parent device root point options [optional fields] - kind source options`."""
    place, _, system = line.partition(" - ")
    number, _, device, root, point, options, *optional = place.split(" ")
    return Mounted(
        id=int(number),
        device=device,
        root=_unescaped(root),
        point=PurePosixPath(_unescaped(point)),
        is_shared=any(field.startswith("shared:") for field in optional),
        kind=system.split(" ")[0],
        is_read_only="ro" in options.split(","),
        is_nodev="nodev" in options.split(","),
    )


def _unescaped(text: str) -> str:
    """Undo the kernel's escapes of space, tab, newline, backslash and hash, which are bytes."""
    if "\\" not in text:
        return text
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
