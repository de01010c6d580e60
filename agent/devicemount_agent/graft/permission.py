# SPDX-License-Identifier: Apache-2.0
"""Whether the container's own user may open the device files that it is granted.

The device filter lets everybody in the container try; the file's owner and mode, which are what the
runtime would have given it at start, decide who succeeds. So a grant can stand and its user be
refused: that is said. Judged by the first process: others may be other users.
"""

import stat
from collections.abc import Iterable
from pathlib import PurePosixPath

from devicemount_agent.graft.places import Places
from devicemount_agent.graft.target import Container
from devicemount_agent.graft.users import Ids, User, user_of
from devicemount_agent.kernel.files import FileFacts, closing, facts_of
from devicemount_agent.model import Access, Concern, DeviceNode

NAMED = 4  # files in one message


def concerns(container: Container, nodes: Iterable[DeviceNode]) -> tuple[Concern, ...]:
    """Return what the container's user may not open. Raises TargetNotRunning, PathConflict."""
    user, places = user_of(container), Places(container)
    open_to_all = _not_isolated(container)
    if user.overrides and not places.has_own_users:
        return open_to_all
    refused = [
        f"{node.path} ({facts.uid}:{facts.gid}, {stat.S_IMODE(facts.mode):04o})"
        for node in nodes
        if (facts := _facts(places, node)) is not None
        and not may_open(user, facts, node.access, ids=places.ids)
    ]
    if not refused:
        return open_to_all
    more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
    groups = ", ".join(map(str, sorted(user.groups)))
    message = (
        f"user {user.opens_as} (groups {groups}) may not open {', '.join(refused[:NAMED])}{more}"
    )
    return (*open_to_all, Concern("NotPermitted", message))


def _not_isolated(container: Container) -> tuple[Concern, ...]:
    if not container.runtime.allows_all:
        return ()
    message = "the container is privileged: it may open this device, and all others, without us"
    return (Concern("NotIsolated", message),)


def may_open(user: User, file: FileFacts, access: Access, *, ids: Ids) -> bool:
    """Judge by owner and mode, as the kernel does: the first class that fits decides.

    A capability counts for files whose owner and group the container has numbers for.
    """
    if user.overrides and ids.users.has(file.uid) and ids.groups.has(file.gid):
        return True
    if user.opens_as == file.uid:
        bits = file.mode >> 6
    elif file.gid in user.groups:
        bits = file.mode >> 3
    else:
        bits = file.mode
    may_read, may_write = bool(bits & 0o4), bool(bits & 0o2)
    return (may_read or Access.READ not in access) and (may_write or Access.WRITE not in access)


def _facts(places: Places, node: DeviceNode) -> FileFacts | None:
    fd = places.standing(PurePosixPath(node.path))
    if fd is None:
        return None
    with closing(fd):
        return facts_of(fd)
