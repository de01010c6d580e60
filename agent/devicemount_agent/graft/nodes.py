# SPDX-License-Identifier: Apache-2.0
"""Device nodes in a running container: through its root, with nothing of it executed.

The container may turn any directory into a symlink, and back, at any moment, so a path is resolved
once, inside its root and without following links, into a descriptor; from there on names are single
components. What stood there before us is left alone, and what we remove is what we made. Nodes are
made on the container's own /dev only: on a volume, or where /dev is the node's own, they would be
there for others. Where none can be made that works, edits.py mounts one of the agent's own.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from devicemount_agent.errors import (
    NotAllowed,
    PathConflict,
    TargetNotRunning,
    UnsupportedRuntime,
)
from devicemount_agent.graft.numbers import from_file, mknod_arguments
from devicemount_agent.graft.places import Places, is_private
from devicemount_agent.graft.target import Container
from devicemount_agent.graft.users import User, user_of
from devicemount_agent.kernel.files import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    FileFacts,
    closing,
    facts_of,
    openat2,
)
from devicemount_agent.model import DeviceNode, DeviceNumber

HOST_DEV = Path("/dev")
_DEV = PurePosixPath("/dev")
_RESOLVE = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_DIRECTORY_MODE = 0o755
_PERMISSIONS = (
    0o666  # of the host's node: neither set-id nor execute bits mean anything on a device
)


def missing(places: Places, nodes: Iterable[DeviceNode]) -> frozenset[str]:
    """Return what does not stand there, directories included: for the journal, before `place`."""
    return frozenset(
        str(path)
        for node in nodes
        for path in (*_directories(_checked(node)), _checked(node))
        if not _exists(places, path)
    )


def unmakeable(places: Places, nodes: Iterable[DeviceNode]) -> tuple[DeviceNode, ...]:
    """Return those that must be mounted: a node made there could not be opened, or not be made.

    In a user namespace of its own no file system of the container carries devices.
    """
    nodes = tuple(nodes)
    if places.has_own_users:
        return nodes
    directories = {_checked(node).parent for node in nodes}
    refusing = {path for path in directories if _carries_no_devices(places, path)}
    return tuple(node for node in nodes if PurePosixPath(node.path).parent in refusing)


def place(
    container: Container, nodes: Iterable[DeviceNode], *, root: Path = Path("/")
) -> frozenset[str]:
    """Make the nodes that are not there; return the paths of what was made, directories included.

    `root` is where we see the node's file system. Idempotent. Raises PathConflict when something
    else stands there, NotAllowed for a path outside /dev, UnsupportedRuntime where a node would not
    be the container's alone; then nothing that was made is left behind.
    """
    nodes = tuple(nodes)
    made: set[str] = set()
    if not nodes:
        return frozenset()
    places, user = Places(container), user_of(container)
    with ExitStack() as undo:
        undo.callback(lambda: displace(container, nodes, frozenset(made)))
        for node in nodes:
            _place(places, node, made=made, user=user, root=root)
        undo.pop_all()
    return frozenset(made)


def displace(
    container: Container, nodes: Iterable[DeviceNode], made: frozenset[str]
) -> tuple[str, ...]:
    """Remove what we made, where it is still what we made. Idempotent.

    Returns what could not be reached, and why.
    """
    by_path = {node.path: node for node in nodes}
    left: list[str] = []
    try:
        places = Places(container)
    except TargetNotRunning:
        return ()  # its /dev went with it
    for path in sorted(made, reverse=True):  # what is in a directory goes before it
        try:
            _displace(places, PurePosixPath(path), by_path.get(path))
        except UnsupportedRuntime as error:
            left.append(f"{path}: {error}")
        except (FileNotFoundError, PathConflict):
            continue  # it is not ours now
    return tuple(left)


def open_node(places: Places, node: DeviceNode) -> int:
    """Return an O_PATH descriptor of the node, proven to be it; the caller closes it.

    Raises PathConflict.
    """
    path = _checked(node)
    fd = places.standing(path)
    if fd is None:
        raise PathConflict(f"{path} is not there (any more)")
    return _proven(fd, node)


@dataclass(frozen=True, slots=True)
class Permissions:
    """Of a device file, in the node's ids."""

    mode: int
    uid: int
    gid: int


def permissions(places: Places, node: DeviceNode, *, user: User, root: Path) -> Permissions:
    """Return what the allocation says, else the node's mode and the container's user (CDI).

    An id that the allocation names is the container's; one without a number on the node becomes its
    root's.
    """
    mode = on_node(node.host_path, root).st_mode if node.mode is None else node.mode
    users, groups, (root_uid, root_gid) = places.ids.users, places.ids.groups, places.ids.root()
    uid = user.uid if node.uid is None else users.on_node(node.uid)
    gid = user.gid if node.gid is None else groups.on_node(node.gid)
    return Permissions(
        mode=stat.S_IMODE(mode) & _PERMISSIONS,
        uid=root_uid if uid is None else uid,
        gid=root_gid if gid is None else gid,
    )


def set_permissions(node_fd: int, wanted: Permissions) -> None:
    """chown and chmod what the descriptor holds.

    That is a device node, as was checked, so the link in /proc leads to nothing else.
    """
    link = Path(f"/proc/self/fd/{node_fd}")
    os.chown(link, wanted.uid, wanted.gid)
    link.chmod(wanted.mode)


def check_is_private(places: Places, directory: FileFacts, path: PurePosixPath) -> None:
    """Raise PathConflict where others would have it too, or UnsupportedRuntime."""
    if directory.device == HOST_DEV.stat().st_dev:
        raise UnsupportedRuntime(f"{path} would be made in the node's own /dev")
    with closing(_open_directory(places, _DEV)) as dev_fd:
        is_elsewhere = directory.device != facts_of(dev_fd).device
    if is_elsewhere or not is_private(places.mount_of(directory, path.parent)):
        raise PathConflict(f"{path} would be made on a volume")


def _carries_no_devices(places: Places, directory: PurePosixPath) -> bool:
    while (found := places.standing_directory(directory)) is None:
        directory = directory.parent
    mounted = places.mount_of(found, directory)
    return mounted.is_nodev or mounted.is_read_only


def _place(places: Places, node: DeviceNode, *, made: set[str], user: User, root: Path) -> None:
    path = _checked(node)
    with closing(_make_directory(places, path.parent, made)) as directory_fd:
        if _stands(directory_fd, node):
            return
        check_is_private(places, facts_of(directory_fd), path)
        wanted = permissions(places, node, user=user, root=root)
        mode, device = mknod_arguments(node.number, mode=0o600)
        try:
            os.mknod(path.name, mode, device, dir_fd=directory_fd)
        except FileExistsError as error:
            raise PathConflict(f"{path} was made by somebody else meanwhile") from error
        made.add(str(path))
        with closing(_open_node(directory_fd, node)) as node_fd:
            _check_is_there(facts_of(node_fd), facts_of(directory_fd), node)
            set_permissions(node_fd, wanted)


def _displace(places: Places, path: PurePosixPath, node: DeviceNode | None) -> None:
    if node is None:
        places.remove_directory(path)
        return
    with places.there(path) as (fd, directory_fd):
        _check_is(facts_of(fd), node)
        os.unlink(path.name, dir_fd=directory_fd)


def _stands(directory_fd: int, node: DeviceNode) -> bool:
    """Say whether the node is there. Raises PathConflict when something else is."""
    try:
        os.close(_open_node(directory_fd, node))
    except FileNotFoundError:
        return False
    return True


def _check_is(found: FileFacts, node: DeviceNode) -> None:
    if from_file(found.mode, found.number) != node.number:
        kind = stat.filemode(found.mode)[0]
        number = f"{os.major(found.number)}:{os.minor(found.number)}"
        raise PathConflict(f"something else stands at {node.path}: {kind} {number}")


def _check_is_there(found: FileFacts, directory: FileFacts, node: DeviceNode) -> None:
    """Raise PathConflict for one of the same number that was mounted over ours: it may be the
    node's own, whose owner must not change.
    """
    if found.is_mount_root or found.device != directory.device:
        raise PathConflict(f"something else was mounted at {node.path} meanwhile")


def _open_node(directory_fd: int, node: DeviceNode) -> int:
    name = PurePosixPath(node.path).name
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    return _proven(os.open(name, flags, dir_fd=directory_fd), node)


def _proven(fd: int, node: DeviceNode) -> int:
    """Return the descriptor if it holds the node; else close it and raise PathConflict."""
    try:
        _check_is(facts_of(fd), node)
    except PathConflict:
        os.close(fd)
        raise
    return fd


def on_node(host_path: str, root: Path) -> os.stat_result:
    """Return what stands at a path of the node, which leads over no symlink. Raises OSError."""
    flags = os.O_PATH | os.O_NOFOLLOW
    with (
        closing(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root_fd,
        closing(openat2(root_fd, host_path, flags=flags, resolve=_RESOLVE)) as fd,
    ):
        return os.fstat(fd)


def number_on_node(host_path: str, root: Path) -> DeviceNumber | None:
    """Return the number of a device file of the node; None: there is none."""
    try:
        found = on_node(host_path, root)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return None
        raise
    return from_file(found.st_mode, found.st_rdev)


def _checked(node: DeviceNode) -> PurePosixPath:
    path = PurePosixPath(node.path)
    if _DEV not in path.parents or ".." in path.parts or str(path) != node.path:
        raise NotAllowed(f"{node.path} is not a plain path below {_DEV}")
    return path


def _directories(path: PurePosixPath) -> Iterator[PurePosixPath]:
    """Yield the directories between /dev and the node, outermost first."""
    return (parent for parent in reversed(path.parents) if _DEV in parent.parents)


def _exists(places: Places, path: PurePosixPath) -> bool:
    fd = places.standing(path)
    if fd is None:
        return False
    os.close(fd)
    return True


def _make_directory(places: Places, path: PurePosixPath, made: set[str]) -> int:
    """Open a directory in or below /dev, making it and those above it where they are missing."""
    with suppress(FileNotFoundError):
        return _open_directory(places, path)
    with closing(_make_directory(places, path.parent, made)) as parent_fd:
        check_is_private(places, facts_of(parent_fd), path)
        with suppress(FileExistsError):
            os.mkdir(path.name, _DIRECTORY_MODE, dir_fd=parent_fd)
            made.add(str(path))
    return _open_directory(places, path)


def _open_directory(places: Places, path: PurePosixPath) -> int:
    """Return an O_PATH descriptor.

    Raises PathConflict for anything but directories, FileNotFoundError.
    """
    try:
        return places.open_directory(path)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise PathConflict(f"{path} is not a directory, or leads over a symlink") from error
        raise
