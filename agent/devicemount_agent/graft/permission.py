# SPDX-License-Identifier: Apache-2.0
"""Whether the container's own user may open the device files that it is granted.

The device filter lets everybody in the container try; the file's owner and mode, which are what the
runtime would have given it at start, decide who succeeds. So a grant can stand and its user be
refused: that is said. Judged by the first process: others may be other users.
"""

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from devicemount_agent.graft.places import Places
from devicemount_agent.graft.target import Container
from devicemount_agent.kernel.files import FileFacts, closing, facts_of, lines_of
from devicemount_agent.model import Access, Concern, DeviceNode

CAP_DAC_OVERRIDE = 1
NAMED = 4  # files in one message


@dataclass(frozen=True, slots=True)
class User:
    """As whom a process opens files."""

    uid: int
    groups: frozenset[int]
    overrides: bool  # CAP_DAC_OVERRIDE


def concerns(container: Container, nodes: Iterable[DeviceNode]) -> tuple[Concern, ...]:
    """Return what the container's user may not open. Raises TargetNotRunning, PathConflict."""
    user = _user_of(container)
    places = Places(container)
    refused = [
        f"{node.path} ({facts.uid}:{facts.gid}, {stat.S_IMODE(facts.mode):04o})"
        for node in nodes
        if (facts := _facts(places, node)) is not None and not may_open(user, facts, node.access)
    ]
    if not refused:
        return ()
    more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
    groups = ", ".join(map(str, sorted(user.groups)))
    message = f"user {user.uid} (groups {groups}) may not open {', '.join(refused[:NAMED])}{more}"
    return (Concern("NotPermitted", message),)


def may_open(user: User, file: FileFacts, access: Access) -> bool:
    """Judge by owner and mode, as the kernel does: the first class that fits decides."""
    if user.overrides:
        return True
    if user.uid == file.uid:
        bits = file.mode >> 6
    elif file.gid in user.groups:
        bits = file.mode >> 3
    else:
        bits = file.mode
    may_read, may_write = bool(bits & 0o4), bool(bits & 0o2)
    return (may_read or Access.READ not in access) and (may_write or Access.WRITE not in access)


def user_from(status: Mapping[str, str]) -> User:
    """Parse /proc/<pid>/status: the fourth of Uid and Gid is for the file system."""
    groups = {int(status["Gid"].split()[3]), *map(int, status["Groups"].split())}
    capabilities = int(status["CapEff"], 16)
    return User(
        uid=int(status["Uid"].split()[3]),
        groups=frozenset(groups),
        overrides=bool(capabilities >> CAP_DAC_OVERRIDE & 1),
    )


def _user_of(container: Container) -> User:
    try:
        lines = lines_of(f"/proc/{container.init_pid}/status")
    finally:
        container.check()  # else it may have been another process's
    return user_from(dict(line.split(":\t", 1) for line in lines if ":\t" in line))


def _facts(places: Places, node: DeviceNode) -> FileFacts | None:
    fd = places.standing(PurePosixPath(node.path))
    if fd is None:
        return None
    with closing(fd):
        return facts_of(fd)
