# SPDX-License-Identifier: Apache-2.0
"""The node's own file system, below its root (/proc/1/root; in tests any directory).

Paths in answers of device plugins, CDI specs and profiles are the node's: they are resolved here,
inside that root and with the node's symlinks, and what is decided about a path is decided about the
place where it ended, never about what was written.
"""

import errno
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from devicemount_agent.kernel.files import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    beginning_of,
    closing,
    openat2,
)
from devicemount_agent.model import DeviceNumber, NodeType

_RESOLVE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
TEXT_LIMIT_BYTES = 1 << 20  # files of /proc; a GPU's information has 1 kB
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Found:
    """What stands at the end of a path."""

    path: str  # after symlinks, on the node
    mode: int  # st_mode
    rdev: int
    uid: int
    gid: int

    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def number(self) -> DeviceNumber | None:
        """Return the device's number, None if it is no device node."""
        if stat.S_ISCHR(self.mode):
            kind = NodeType.CHAR
        elif stat.S_ISBLK(self.mode):
            kind = NodeType.BLOCK
        else:
            return None
        return DeviceNumber(kind.value, os.major(self.rdev), os.minor(self.rdev))


class Host:
    """The node's files. Every method resolves anew and raises OSError with the path asked for."""

    def __init__(self, root: Path, *, moved: Collection[PurePosixPath] = ()) -> None:
        """`moved`: where this node, unlike others, has what commands it (own.py)."""
        self._root = root
        self.moved = moved

    def find(self, path: str) -> Found:
        """Follow the path to its end."""
        with closing(self._root_fd()) as root_fd:
            prefix = _place_of(root_fd)
            with closing(openat2(root_fd, path, flags=os.O_PATH, resolve=_RESOLVE)) as fd:
                facts = os.fstat(fd)
                return Found(
                    path=_below(_place_of(fd), prefix, path),
                    mode=facts.st_mode,
                    rdev=facts.st_rdev,
                    uid=facts.st_uid,
                    gid=facts.st_gid,
                )

    def exists(self, path: str) -> bool:
        try:
            self.find(path)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}:
                raise
            return False
        return True

    def text(self, path: str, *, limit_bytes: int = TEXT_LIMIT_BYTES) -> str:
        """Return the beginning of a text file. Never waits for a writer."""
        flags = os.O_RDONLY | os.O_NONBLOCK
        with closing(self._root_fd()) as root_fd, closing(self._open(root_fd, path, flags)) as fd:
            raw = beginning_of(fd, limit_bytes=limit_bytes)  # /proc gives a page at a time
            return raw.decode("utf-8", "replace")

    def link(self, path: str) -> str | None:
        """Return what a symlink says, None if it is none."""
        name = PurePosixPath(path)
        flags = os.O_PATH | os.O_DIRECTORY
        try:
            with (
                closing(self._root_fd()) as root_fd,
                closing(self._open(root_fd, str(name.parent), flags)) as fd,
            ):
                return os.readlink(name.name, dir_fd=fd)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT, errno.ENOTDIR}:  # no link, or nothing
                return None
            raise

    def names(self, directory: str) -> list[str]:
        """Return what is in a directory, sorted; nothing if there is no such directory."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            with (
                closing(self._root_fd()) as root_fd,
                closing(self._open(root_fd, directory, flags)) as fd,
            ):
                return sorted(os.listdir(fd))  # noqa: PTH208  # by descriptor
        except (FileNotFoundError, NotADirectoryError):
            return []

    def below(self, directory: str) -> Iterator[tuple[str, Found]]:
        """Yield every (path, file) below a directory, following no link."""
        for name in self.names(directory):
            path = f"{directory.rstrip('/')}/{name}"
            if self.link(path) is not None:
                continue
            try:
                found = self.find(path)
            except FileNotFoundError:  # it went meanwhile
                continue
            if found.is_directory():
                yield from self.below(path)
            else:
                yield path, found

    def _root_fd(self) -> int:
        return os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @staticmethod
    def _open(root_fd: int, path: str, flags: int) -> int:
        return openat2(root_fd, path, flags=flags, resolve=_RESOLVE)


def _place_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def _below(place: str, prefix: str, asked: str) -> str:
    """Return a place below the root as a path of the node."""
    path = place if prefix == "/" else place.removeprefix(prefix) or "/"
    if path.endswith(_DELETED) or not path.startswith("/") or not place.startswith(prefix):
        raise FileNotFoundError(2, "has no name on the node (any more)", asked)
    return path
