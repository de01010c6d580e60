# SPDX-License-Identifier: Apache-2.0
"""As whom a container's processes open files, and which ids of the node its own ids are.

A container in a user namespace of its own has ids that are others outside. /proc shows the agent,
and files are stamped with, those of the node; what an allocation names are the container's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.graft.target import Container
from devicemount_agent.kernel.files import lines_of

CAP_DAC_OVERRIDE = 1


@dataclass(frozen=True, slots=True)
class IdMap:
    """Which ids of a user namespace are which of the node: (inside, outside, count) each."""

    ranges: tuple[tuple[int, int, int], ...]

    def on_node(self, inside: int) -> int | None:
        """Return an id of the container as the node has it; None: it has none there."""
        for first, outside, count in self.ranges:
            if first <= inside < first + count:
                return outside + inside - first
        return None

    def has(self, outside: int) -> bool:
        """Tell whether an id of the node is one of the container's too."""
        return any(first <= outside < first + count for _, first, count in self.ranges)


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids of a container."""

    users: IdMap
    groups: IdMap

    def root(self) -> tuple[int, int]:
        """Return what its root is on the node. Without one there, the node's own root."""
        uid, gid = self.users.on_node(0), self.groups.on_node(0)
        return (uid, gid) if uid is not None and gid is not None else (0, 0)


OF_NODE = Ids(IdMap(((0, 0, 2**32 - 1),)), IdMap(((0, 0, 2**32 - 1),)))


@dataclass(frozen=True, slots=True)
class User:
    """A process's user, in the node's ids."""

    uid: int  # these two: the real ones
    gid: int
    opens_as: int  # the file system uid
    groups: frozenset[int]  # the file system gid among them
    overrides: bool  # CAP_DAC_OVERRIDE, which counts for files of the container's own ids


def user_of(container: Container) -> User:
    """Return the user of the main process. Raises OSError, TargetNotRunning."""
    try:
        lines = lines_of(f"/proc/{container.init_pid}/status")
    finally:
        container.check()  # else it may have been another process's
    return user_from(dict(line.split(":\t", 1) for line in lines if ":\t" in line))


def user_from(status: Mapping[str, str]) -> User:
    """Parse /proc/<pid>/status: the fourth of Uid and Gid is for the file system."""
    uids, gids = status["Uid"].split(), status["Gid"].split()
    capabilities = int(status["CapEff"], 16)
    return User(
        uid=int(uids[0]),
        gid=int(gids[0]),
        opens_as=int(uids[3]),
        groups=frozenset({int(gids[3]), *map(int, status["Groups"].split())}),
        overrides=bool(capabilities >> CAP_DAC_OVERRIDE & 1),
    )


def ids_of(container: Container) -> Ids:
    """Return what a container's ids are on the node. Raises OSError, TargetNotRunning."""
    process = Path(f"/proc/{container.init_pid}")
    try:
        users, groups = lines_of(process / "uid_map"), lines_of(process / "gid_map")
    finally:
        container.check()
    return Ids(id_map(users), id_map(groups))


def id_map(lines: Iterable[str]) -> IdMap:
    """Parse uid_map or gid_map, as a process of the node's user namespace reads it."""
    numbers = (tuple(map(int, line.split())) for line in lines if line)
    return IdMap(tuple((inside, outside, count) for inside, outside, count in numbers))
