# SPDX-License-Identifier: Apache-2.0
"""Bind mounts in a running container: planned, made, verified, taken away by what is mounted.

A mount of ours is told from others' by the number of the file under it (st_dev and st_ino), written
to the journal before it is made. It never carries set-id, nor devices save the agent's own device
files, and appears nowhere else: not below a shared mount. What it may cover, and why a plain file
of the image is covered at all, is in docs/adr/0007.
"""

import errno
import os
import stat
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import PurePosixPath

from devicemount_agent.errors import NodeUnavailable, PathConflict, UnsupportedRuntime
from devicemount_agent.graft.mountinfo import Mounted, by_id
from devicemount_agent.graft.places import ROOT, Places, is_of_kernel
from devicemount_agent.graft.sources import Sources, is_it
from devicemount_agent.graft.target import Container
from devicemount_agent.kernel.files import FileFacts, closing, facts_of
from devicemount_agent.kernel.mount import attaching, detaching
from devicemount_agent.kernel.namespace import within
from devicemount_agent.kernel.syscall import Prepared
from devicemount_agent.model import Bound


def stands(places: Places, bound: Bound) -> bool:
    """Tell whether the very file is there already, whoever brought it. Raises PathConflict."""
    path = PurePosixPath(bound.path)
    fd = places.standing(path)
    if fd is None:
        return False
    with closing(fd):
        return is_it(facts_of(fd), bound)


def check_may_cover(places: Places, bound: Bound, source: FileFacts) -> None:
    """Raise PathConflict or UnsupportedRuntime where the mount must not be made."""
    path = PurePosixPath(bound.path)
    fd = places.standing(path)
    if fd is None:
        return
    with closing(fd):
        _check_may_cover(places, path, facts_of(fd), source)


def attach(
    container: Container, places: Places, bounds: Collection[Bound], sources: Sources
) -> None:
    """Make the mounts that are not there, with their mount points. Idempotent.

    Raises PathConflict, UnsupportedRuntime, AllocationUnknown, OSError.
    """
    pending = sorted((b for b in bounds if not stands(places, b)), key=lambda b: b.path)
    while pending:  # what is inside of another one comes after it
        paths = {PurePosixPath(bound.path) for bound in pending}
        outer = [b for b in pending if not paths.intersection(PurePosixPath(b.path).parents)]
        _attach(container, places, outer, sources)
        pending = [bound for bound in pending if bound not in outer]
        if pending:
            places = Places(container)


def detach(container: Container, bounds: Iterable[Bound]) -> None:
    """Take the mounts away where they are still what we mounted. Idempotent. Raises OSError.

    A process that uses one keeps what it has open. A mount point cannot be renamed, but a directory
    above it can: then the mount is found by its id.
    """
    places = Places(container)
    with ExitStack() as stack:
        calls: list[tuple[Prepared, Prepared]] = []
        for bound in sorted(bounds, key=lambda b: b.path, reverse=True):
            if (held := _held(places, bound)) is not None:
                directory_fd, name = held
                stack.enter_context(closing(directory_fd))
                calls.append(detaching(directory_fd, name))
        _detach_all(container, calls)


def _detach_all(container: Container, calls: Sequence[tuple[Prepared, Prepared]]) -> None:
    """Make each pair of calls, also those after one that failed. Raises the last OSError."""
    failed: OSError | None = None
    while calls:
        results = within(container.pidfd, [call for pair in calls for call in pair])
        if results[-1] >= 0:
            break
        failed = OSError(-results[-1], os.strerror(-results[-1]), f"mounts of {container.id[:12]}")
        calls = calls[(len(results) + 1) // 2 :]
    if failed is not None:
        raise failed


def verified(places: Places, bounds: Iterable[Bound]) -> frozenset[Bound]:
    """Return the mounts as they are found in the container.

    Raises NodeUnavailable where one is not there, PathConflict.
    """
    return frozenset(_verified(places, bound) for bound in bounds)


def _verified(places: Places, bound: Bound) -> Bound:
    fd = places.standing(PurePosixPath(bound.path))
    if fd is not None:
        with closing(fd):
            facts = facts_of(fd)
        if is_it(facts, bound):
            return replace(bound, mount_id=facts.mount_id)
    raise NodeUnavailable(f"{bound.path} in the container is not what was mounted there")


def _attach(
    container: Container, places: Places, bounds: Collection[Bound], sources: Sources
) -> None:
    with ExitStack() as stack:
        trees = sources.trees(tuple(bounds))
        for tree_fd in trees:
            stack.enter_context(closing(tree_fd))
        calls = []
        for bound, tree_fd in zip(bounds, trees, strict=True):
            target_fd = stack.enter_context(closing(_mount_point(places, bound, facts_of(tree_fd))))
            calls.append(attaching(tree_fd, target_fd))
        container.check()
        results = within(container.pidfd, calls)
        if results[-1] < 0:
            bound = tuple(bounds)[len(results) - 1]
            raise OSError(-results[-1], os.strerror(-results[-1]), bound.path)


def _mount_point(places: Places, bound: Bound, source: FileFacts) -> int:
    """Return a descriptor of where the mount goes, made where it is missing."""
    path = PurePosixPath(bound.path)
    if (fd := places.standing(path)) is None:
        if stat.S_ISDIR(source.mode):
            places.make_directory(path)
        else:
            places.make_file(path)
        fd = places.standing(path)
    if fd is None:
        raise PathConflict(f"{path} was removed by somebody else meanwhile")
    try:
        _check_may_cover(places, path, facts_of(fd), source)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_may_cover(
    places: Places, path: PurePosixPath, found: FileFacts, source: FileFacts
) -> None:
    mounted = check_appears_nowhere_else(places, found, path)
    if found.is_mount_root:
        raise PathConflict(f"something else is mounted at {path}")
    if is_of_kernel(mounted) and not _is_driver_file(path):
        raise PathConflict(f"{path} is on {mounted.point}, a {mounted.kind} file system")
    if stat.S_ISCHR(source.mode) or stat.S_ISBLK(source.mode):
        if not places.is_point(found):  # one of ours, left by a crash
            raise PathConflict(f"something else stands at {path}: {stat.filemode(found.mode)[0]}")
    elif stat.S_ISDIR(source.mode) and stat.S_ISDIR(found.mode):
        _check_may_cover_directory(places, path)
    elif stat.S_ISDIR(source.mode) or stat.S_IFMT(found.mode) not in {stat.S_IFREG, stat.S_IFSOCK}:
        raise PathConflict(f"something else stands at {path}: {stat.filemode(found.mode)[0]}")


def _check_may_cover_directory(places: Places, path: PurePosixPath) -> None:
    if path.parent == ROOT:
        raise PathConflict(f"{path} would cover all that the container has there")
    for mounted in places.mounts:
        if path in mounted.point.parents:
            raise PathConflict(f"{path} would cover the mount {mounted.point}")


def check_appears_nowhere_else(places: Places, found: FileFacts, path: PurePosixPath) -> Mounted:
    """Return the mount that something is on. Raises UnsupportedRuntime for a shared one."""
    mounted = places.mount_of(found, path)
    if mounted.is_shared:
        raise UnsupportedRuntime(
            f"{path} is on {mounted.point}, a shared mount: what is mounted there appears elsewhere"
        )
    return mounted


def _is_driver_file(path: PurePosixPath) -> bool:
    return PurePosixPath("/proc/driver") in path.parents


def _held(places: Places, bound: Bound) -> tuple[int, bytes] | None:
    """Return the directory in which our mount is now, which the caller closes, and its name there;
    None: it is not there any more. A directory above that is renamed meanwhile changes nothing.
    """
    candidates = [PurePosixPath(bound.path)]
    if (moved := by_id(places.mounts, bound.mount_id)) is not None:
        candidates.append(moved.point)
    for path in candidates:
        try:
            directory_fd = places.open_directory(path.parent)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise
            continue
        if _is_mounted_in(directory_fd, path.name, bound):
            return directory_fd, os.fsencode(path.name)
        os.close(directory_fd)
    return None


def _is_mounted_in(directory_fd: int, name: str, bound: Bound) -> bool:
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(FileNotFoundError), closing(os.open(name, flags, dir_fd=directory_fd)) as fd:
        facts = facts_of(fd)
        return facts.is_mount_root and is_it(facts, bound)
    return False
