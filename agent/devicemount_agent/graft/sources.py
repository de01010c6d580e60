# SPDX-License-Identifier: Apache-2.0
"""What is bound into containers: files of the node, and those that the agent itself keeps for them.

A mount can only be copied in the mount namespace that it is of. The node's own is entered for that
(namespace.py); what the agent keeps is in its own.
"""

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from devicemount_agent.errors import AllocationUnknown, NotAllowed
from devicemount_agent.kernel.files import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    FileFacts,
    closing,
    facts_of,
    openat2,
)
from devicemount_agent.kernel.mount import MOUNT_ATTR_NODEV, cloning_tree, mount_setattr
from devicemount_agent.kernel.namespace import descriptors_of, descriptors_within
from devicemount_agent.model import Bound

_RESOLVE = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


class Sources:
    """Opens by path on the node, over no symlink: the path is what is left after them."""

    def __init__(self, *, node_root: Path, own: Path) -> None:
        """`node_root` is /proc/<pid>/root of a process of the node, or a directory that we see
        ourselves; `own` are the agent's files.
        """
        self.node_root = node_root
        self._own = own

    def facts(self, host_path: str) -> FileFacts:
        """Return what stands there. Raises AllocationUnknown, NotAllowed."""
        with closing(self._opened(host_path)) as fd:
            return self._facts(fd, host_path)

    def trees(self, bounds: Sequence[Bound]) -> tuple[int, ...]:
        """Return an unattached private mount of each, with its attributes; the caller closes them.

        Raises AllocationUnknown where something else stands there by now.
        """
        with ExitStack() as stack:
            found = {b: stack.enter_context(closing(self._opened(b.host_path))) for b in bounds}
            for bound, fd in found.items():
                if not is_it(self._facts(fd, bound.host_path), bound):
                    raise AllocationUnknown(f"{bound.host_path} on the node is another file now")
            trees = stack.enter_context(ExitStack())  # closes them unless all went well
            copies: dict[Bound, int] = {}
            for is_own in (True, False):
                chosen = [b for b in found if self._is_own(b.host_path) is is_own]
                fds = self._copied([found[bound] for bound in chosen], is_own=is_own)
                for bound, fd in zip(chosen, fds, strict=True):
                    trees.callback(os.close, fd)
                    copies[bound] = fd
            for bound, fd in copies.items():
                carries_devices = not bound.attributes & MOUNT_ATTR_NODEV
                clears = MOUNT_ATTR_NODEV if carries_devices else 0  # where the agent's files are
                mount_setattr(fd, sets=bound.attributes, clears=clears)
            trees.pop_all()
        return tuple(copies[bound] for bound in bounds)

    def _copied(self, fds: Sequence[int], *, is_own: bool) -> tuple[int, ...]:
        """Return unattached copies of mounts, made where they can be made."""
        calls = [cloning_tree(fd) for fd in fds]
        namespace = self.node_root.parent / "ns/mnt"
        if not calls:
            return ()
        if is_own or self.node_root.name != "root" or not namespace.is_symlink():
            return descriptors_of(calls, path="sources of mounts")
        with closing(os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)) as namespace_fd:
            return descriptors_within(namespace_fd, calls, path="sources of mounts")

    def _opened(self, host_path: str) -> int:
        root = Path("/") if self._is_own(host_path) else self.node_root
        try:
            with closing(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root_fd:
                flags = os.O_PATH | os.O_NOFOLLOW
                return openat2(root_fd, host_path, flags=flags, resolve=_RESOLVE)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise
            raise AllocationUnknown(f"{host_path} on the node: {error.strerror}") from error

    def _is_own(self, host_path: str) -> bool:
        return Path(host_path).is_relative_to(self._own)

    def _facts(self, fd: int, host_path: str) -> FileFacts:
        facts = facts_of(fd)
        kind = stat.S_IFMT(facts.mode)
        if kind == stat.S_IFLNK:
            raise AllocationUnknown(f"{host_path} on the node has become a symlink")
        is_own_device = kind in {stat.S_IFCHR, stat.S_IFBLK} and self._is_own(host_path)
        if kind not in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFSOCK} and not is_own_device:
            raise NotAllowed(f"{host_path} on the node is no file, directory or socket")
        return facts


def is_it(facts: FileFacts, bound: Bound) -> bool:
    """Tell whether a descriptor holds what is, or is to be, mounted."""
    return (facts.device, facts.inode) == (bound.device, bound.inode)
