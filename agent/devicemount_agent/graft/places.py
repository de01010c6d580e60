# SPDX-License-Identifier: Apache-2.0
"""Places in a running container where something is put: found, made, removed.

The container may turn any directory into a symlink, and back, at any moment. What links its image
has on the way (/lib, /var/run) is read first, as text, inside its root; from there on a path is
resolved over no link, into a descriptor, and names are single components. No file server (FUSE) is
asked for anything: a tenant's own never answers. Files and directories are made only where they are
the container's own. How a read-only root is written to, and why links are read at all, is in
docs/adr/0007.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePosixPath

from devicemount_agent.errors import NotAllowed, PathConflict, TargetNotRunning, UnsupportedRuntime
from devicemount_agent.graft import shape
from devicemount_agent.graft.mountinfo import (
    Mounted,
    by_id,
    mounts_in,
    mounts_of,
    served_above,
)
from devicemount_agent.graft.target import Container
from devicemount_agent.graft.users import OF_NODE, Ids, ids_of
from devicemount_agent.kernel.files import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    FileFacts,
    closing,
    facts_of,
    openat2,
)
from devicemount_agent.kernel.making import make_directory, make_file, make_symlink
from devicemount_agent.kernel.mount import MOUNT_ATTR_RDONLY, cloning_directory, mount_setattr
from devicemount_agent.kernel.namespace import descriptors_within
from devicemount_agent.model import PodUID

ROOT = PurePosixPath("/")
LINKS_LIMIT = 8  # of an image, on one path
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_DIRECTORY_MODE = 0o755
_FILE_MODE = 0o644
_KERNEL = frozenset({"proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "securityfs"})
_RESOLVE = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


class Places:
    """The tree of one container, with its mounts as they were when the look at it began."""

    def __init__(self, container: Container) -> None:
        """Read the mounts. Raises TargetNotRunning."""
        self.container = container
        self._process = Path(f"/proc/{container.init_pid}")
        try:
            self.mounts = mounts_in(container.pidfd)
        except OSError as error:
            raise TargetNotRunning(f"container {container.id[:12]} has ended") from error
        container.check()  # else they may have been another process's

    @cached_property
    def ids(self) -> Ids:
        """What the container's users and groups are on the node."""
        return ids_of(self.container) if self.has_own_users else OF_NODE

    @cached_property
    def has_own_users(self) -> bool:
        """Whether the container has a user namespace of its own: no device node works that is made
        on a file system of such a one.
        """
        users = (self._process / "ns/user").readlink()
        self.container.check()
        return users != (shape.NODE_PROCESS / "ns/user").readlink()

    # ---- where

    def open_directory(self, path: PurePosixPath) -> int:
        """Return an O_PATH descriptor; the caller closes it. Raises OSError, UnsupportedRuntime."""
        self._check_served(path)
        return self._open(path, _DIRECTORY)

    def plain(self, text: str) -> PurePosixPath:
        """Return where a path leads once the image's own links on the way to it are followed.

        The last component is never followed. Raises NotAllowed for what is no plain path,
        PathConflict, UnsupportedRuntime.
        """
        path = checked(text)
        self._check_served(path)
        try:
            with closing(self._open(path.parent, _DIRECTORY)):
                return path
        except FileNotFoundError:
            return path
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise _conflict(path.parent, error) from error
        return self._followed(path)

    def standing(self, path: PurePosixPath) -> int | None:
        """Return an O_PATH descriptor of what stands there, be it a symlink; None: nothing."""
        self._check_served(path)
        try:
            return self._open(path, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _conflict(path, error) from error

    def missing(self, paths: Iterable[PurePosixPath]) -> frozenset[PurePosixPath]:
        """Return those that do not stand there, with the directories above that do not either."""
        missing: set[PurePosixPath] = set()
        for part in {part for path in paths for part in (path, *path.parents)}:
            fd = self.standing(part)
            if fd is None:
                missing.add(part)
            else:
                os.close(fd)
        return frozenset(missing)

    def mount_of(self, facts: FileFacts, path: PurePosixPath) -> Mounted:
        """Return the mount that something is on. Raises UnsupportedRuntime for one out of sight."""
        found = by_id(self.mounts, facts.mount_id)
        if found is None:
            raise UnsupportedRuntime(f"{path} is on a mount that its own process does not see")
        return found

    # ---- made, removed

    def make_file(self, path: PurePosixPath) -> None:
        """Make an empty file, with the directories above it. One that is there is left."""
        with self._writable(path) as directory_fd, suppress(FileExistsError):
            make_file(directory_fd, path.name, _FILE_MODE, owner=self.ids.root())

    def make_directory(self, path: PurePosixPath) -> None:
        """Make a directory, with those above it. One that is there is left."""
        with self._writable(path) as directory_fd, suppress(FileExistsError):
            make_directory(directory_fd, path.name, _DIRECTORY_MODE, owner=self.ids.root())

    def make_link(self, path: PurePosixPath, target: str) -> None:
        """Make a symlink, with the directories above it. Raises PathConflict."""
        with self._writable(path) as directory_fd:
            try:
                make_symlink(target, directory_fd, path.name, owner=self.ids.root())
            except FileExistsError as error:
                raise PathConflict(f"{path} was made by somebody else meanwhile") from error

    def remove_file(self, path: PurePosixPath) -> None:
        """Remove an empty file of root's, as we make them. Anything else is left."""
        with self.there(path) as (fd, directory_fd):
            if self.is_point(facts_of(fd)):
                os.unlink(path.name, dir_fd=directory_fd)

    def is_point(self, facts: FileFacts) -> bool:
        """Tell whether it is what `make_file` makes, with nothing mounted over it."""
        is_ours = stat.S_ISREG(facts.mode) and facts.uid == self.ids.root()[0]
        return is_ours and facts.size_bytes == 0 and not facts.is_mount_root

    def remove_link(self, path: PurePosixPath, target: str) -> None:
        """Remove a symlink that still says this. Anything else is left."""
        with self.there(path) as (fd, directory_fd):
            if link_of(fd) == target:
                os.unlink(path.name, dir_fd=directory_fd)

    def remove_directory(self, path: PurePosixPath) -> None:
        """Remove an empty directory. Anything else is left."""
        with self.there(path) as (_, directory_fd):
            try:
                os.rmdir(path.name, dir_fd=directory_fd)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY}:
                    raise  # those: others' things are in it, or it is not our directory

    # ---- steps

    def _followed(self, path: PurePosixPath) -> PurePosixPath:
        done, todo, links = ROOT, list(path.parent.parts[1:]), 0
        while todo:
            name = todo.pop(0)
            if name == "..":
                done = done.parent
                continue
            self._check_served(done / name)
            link = self._link_at(done, name)
            if link is None:
                done /= name
                continue
            links += 1
            if links > LINKS_LIMIT:
                raise PathConflict(f"{path} leads over more than {LINKS_LIMIT} symlinks")
            target = PurePosixPath(link)
            done = ROOT if target.is_absolute() else done
            todo = [part for part in target.parts if part != "/"] + todo
        return done / path.name

    def _link_at(self, directory: PurePosixPath, name: str) -> str | None:
        """Return what a symlink says; None where none is."""
        try:
            with closing(self._open(directory, _DIRECTORY)) as directory_fd:
                return os.readlink(name, dir_fd=directory_fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise _conflict(directory / name, error) from error

    def _open(self, path: PurePosixPath, flags: int) -> int:
        """Open on the root's own mount, or step by step where another one is on the way."""
        try:
            resolve = _RESOLVE | RESOLVE_NO_XDEV
            return openat2(self.container.root_fd, str(path), flags=flags, resolve=resolve)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        fd = os.dup(self.container.root_fd)
        for part in (*reversed(path.parents[:-1]), path):
            with closing(fd):
                above = facts_of(fd).mount_id
                step = flags if part == path else _DIRECTORY
                fd = openat2(fd, part.name, flags=step, resolve=_RESOLVE)
                self._check_stepped(fd, above, part)
        return fd

    def _check_stepped(self, fd: int, above: int, path: PurePosixPath) -> None:
        """Close it and raise UnsupportedRuntime where a server was mounted meanwhile.

        Looks where the step left the mount above. Neither id can be another mount's by now: the
        descriptors hold the mounts.
        """
        try:
            mount_id = facts_of(fd).mount_id
            if mount_id == above:
                return
            mounted = by_id(mounts_in(self.container.pidfd), mount_id)
            if mounted is None or mounted.is_served():
                raise UnsupportedRuntime(
                    f"{path} leads over a mount that has just been made or removed"
                )
        except BaseException:
            os.close(fd)
            raise

    @contextmanager
    def there(self, path: PurePosixPath) -> Iterator[tuple[int, int]]:
        """Open what stands there and its directory, to be written to. Raises FileNotFoundError.

        Raises UnsupportedRuntime on an emptyDir: what another container of the pod has mounted over
        it would go with it.
        """
        directory = self.standing_directory(path.parent)
        if directory is not None and not is_private(self.mount_of(directory, path.parent)):
            raise UnsupportedRuntime(f"{path} may be a mount point of others of the pod")
        fd = self.standing(path)
        if fd is None:
            raise FileNotFoundError(errno.ENOENT, "is not there", str(path))
        with closing(fd), self._written(path.parent) as directory_fd:
            yield fd, directory_fd

    @contextmanager
    def _writable(self, path: PurePosixPath) -> Iterator[int]:
        """Open the directory of a path, made where it is missing, to make something in it."""
        if self.standing_directory(path.parent) is None:
            self.make_directory(path.parent)
        with self._written(path.parent) as directory_fd:
            yield directory_fd

    def standing_directory(self, path: PurePosixPath) -> FileFacts | None:
        """Return what a directory is, None where nothing stands. Raises PathConflict."""
        fd = self.standing(path)
        if fd is None:
            return None
        with closing(fd):
            facts = facts_of(fd)
        if not stat.S_ISDIR(facts.mode):
            raise PathConflict(f"{path} is not a directory")
        return facts

    @contextmanager
    def _written(self, directory: PurePosixPath) -> Iterator[int]:
        """Open a directory to change what is in it, also where its mount is read-only.

        Such a mount is copied, unattached, and the copy written to: the file system below it is
        not read-only. Raises UnsupportedRuntime on what is not the container's own.
        """
        try:
            fd = self._open(directory, _DIRECTORY)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _conflict(directory, error) from error
        with closing(fd):
            self._check_is_own(facts_of(fd), directory)
            if not os.fstatvfs(fd).f_flag & os.ST_RDONLY:
                yield fd
                return
            calls = [cloning_directory(fd)]
            (copy_fd,) = descriptors_within(self.container.pidfd, calls, path=str(directory))
            with closing(copy_fd):
                mount_setattr(copy_fd, clears=MOUNT_ATTR_RDONLY)
                try:
                    yield copy_fd
                except OSError as error:
                    if error.errno != errno.EROFS:
                        raise
                    raise UnsupportedRuntime(f"{directory}: a read-only file system") from error

    # ---- checks

    def _check_served(self, path: PurePosixPath) -> None:
        served = served_above(self.mounts, path)
        if served is not None:
            raise UnsupportedRuntime(f"{path} leads over {served.point}, a {served.kind} mount")

    def _check_is_own(self, facts: FileFacts, path: PurePosixPath) -> None:
        """Raise UnsupportedRuntime where what is made would be there for others."""
        mounted = self.mount_of(facts, path)
        if is_private(mounted) or is_empty_dir(mounted, self.container.pod_uid):
            return
        raise UnsupportedRuntime(
            f"something would have to be made in {path}, on the volume {mounted.point}:"
            " make it there beforehand"
        )


def checked(text: str) -> PurePosixPath:
    """Return a path in a container that names something below its root. Raises NotAllowed."""
    path = PurePosixPath(text)
    if not path.is_absolute() or path == ROOT or ".." in path.parts or str(path) != text:
        raise NotAllowed(f"{text!r} is not a plain path in a container")
    return path


def is_of_kernel(mounted: Mounted) -> bool:
    """Tell whether files there are doors to the kernel."""
    return mounted.kind in _KERNEL


def is_private(mounted: Mounted) -> bool:
    """Tell whether a mount is the container's alone: its root, or a tmpfs that its runtime made."""
    return mounted.point == ROOT or (mounted.kind == "tmpfs" and not _seen_by_node(mounted))


def is_empty_dir(mounted: Mounted, pod_uid: PodUID) -> bool:
    """Tell whether a mount is an emptyDir of the pod, on the node's disk or in memory."""
    mark = f"/pods/{pod_uid}/volumes/kubernetes.io~empty-dir/"
    if mark in f"{mounted.root}/":
        return True
    seen = _seen_by_node(mounted) if mounted.kind == "tmpfs" else ()
    return bool(seen) and all(mark in f"{point}/" for point in seen)


def _seen_by_node(mounted: Mounted) -> tuple[PurePosixPath, ...]:
    """Return where the node itself has the same file system."""
    node_mounts = mounts_of(shape.NODE_PROCESS)
    return tuple(seen.point for seen in node_mounts if seen.device == mounted.device)


def link_of(fd: int) -> str | None:
    """Return what the symlink says that an O_PATH descriptor holds; None: it holds no symlink."""
    try:
        return os.readlink("", dir_fd=fd)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOENT, errno.ENOTDIR}:
            return None
        raise


def _conflict(path: PurePosixPath, error: OSError) -> Exception:
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return PathConflict(f"{path} is not a directory, or leads over a symlink")
    return error
