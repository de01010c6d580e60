# SPDX-License-Identifier: Apache-2.0
"""What enters a running container besides device nodes: mounts, links, texts over files, and the
directory in which the env and ready files appear.

Planned before the intent is written, so that a crash leaves nothing that the journal does not name;
placed, verified and removed by what was planned. Order: mounts, then links; back in reverse.
"""

import os
import stat
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from devicemount_agent.errors import (
    NodeUnavailable,
    PathConflict,
    UnsupportedRuntime,
)
from devicemount_agent.graft import mounts
from devicemount_agent.graft.env_file import DIRECTORY, env_text
from devicemount_agent.graft.files import Files
from devicemount_agent.graft.mounts import (
    check_appears_nowhere_else,
    check_may_cover,
    stands,
)
from devicemount_agent.graft.nodes import check_is_private, permissions, unmakeable
from devicemount_agent.graft.numbers import from_file
from devicemount_agent.graft.places import Places, checked, link_of
from devicemount_agent.graft.sources import Sources
from devicemount_agent.graft.target import Container
from devicemount_agent.graft.users import user_of
from devicemount_agent.kernel.files import FileFacts, closing, facts_of
from devicemount_agent.kernel.mount import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    has_mount_setattr,
)
from devicemount_agent.model import BindMount, Bound, DeviceNode, Edits, Link, Overlaid
from devicemount_agent_api.failpoints import Failpoint, fire

_SAFE = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
_TEXT = _SAFE | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_RDONLY
_NODE = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DRIVER = PurePosixPath("/proc/driver")
_KERNEL = (PurePosixPath("/proc"), PurePosixPath("/sys"))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a container is to get, and what of it stands there already."""

    bound: frozenset[Bound]
    linked: frozenset[Link]
    standing: frozenset[Bound | Link]
    made: frozenset[str]  # mount points, links and directories that do not stand there yet
    unshown: str = ""  # why there will be no env and ready files; empty: there will


def plan(
    places: Places,
    edits: Edits,
    *,
    nodes: Iterable[DeviceNode] = (),
    sources: Sources,
    files: Files,
) -> Plan:
    """Find where everything goes, and refuse what must not be placed.

    Those of the nodes that cannot be made there are mounted. Raises NotAllowed, PathConflict,
    UnsupportedRuntime, AllocationUnknown.
    """
    mounted = unmakeable(places, nodes)
    if not has_mount_setattr():
        return _only_nodes(edits, mounted)
    planner = _Planner(places, sources, files)
    planner.add_nodes(mounted)
    for mount in edits.mounts:
        planner.add_mount(mount)
    for overlaid in edits.overlaid:
        planner.add_text(overlaid)
    for link in edits.links:
        planner.add_link(link)
    env_text(edits.env)
    unshown = ""
    try:
        planner.add_shown()
    except (PathConflict, UnsupportedRuntime) as error:
        if edits.env:  # without it, who needs the device finds it all the same
            raise
        unshown = str(error)
    return planner.planned(unshown)


def _only_nodes(edits: Edits, mounted: Collection[DeviceNode]) -> Plan:
    what = "the node's kernel is older than 5.12"
    if mounted:
        raise UnsupportedRuntime(f"{what}: no device can be mounted, and none made in its /dev")
    if replace(edits, overlaid=()) != Edits():  # a text keeps programs from what is denied anyway
        raise UnsupportedRuntime(f"{what}: nothing but device nodes can be placed")
    return Plan(frozenset(), frozenset(), frozenset(), frozenset(), unshown=what)


def place(
    container: Container,
    bound: Collection[Bound],
    linked: Iterable[Link],
    *,
    sources: Sources,
) -> None:
    """Make the mounts and links that are not there. Idempotent.

    Raises PathConflict, UnsupportedRuntime, AllocationUnknown, NodeUnavailable, OSError.
    """
    if bound:
        mounts.attach(container, Places(container), bound, sources)
    fire(Failpoint.AGENT_AFTER_MOUNTS)
    if not linked:
        return
    places = Places(container)
    for link in linked:
        if not link_stands(places, link):
            places.make_link(PurePosixPath(link.path), link.target)


def displace(
    container: Container,
    bound: Collection[Bound],
    linked: Collection[Link],
    made: Iterable[str],
) -> None:
    """Remove what we made, in reverse order, where it is still what we made. Idempotent.

    Raises OSError.
    """
    if not (bound or linked):
        return
    paths = frozenset(made)
    places = Places(container)
    for link in linked:
        if link.path in paths:
            with suppress(FileNotFoundError, PathConflict, UnsupportedRuntime):
                places.remove_link(PurePosixPath(link.path), link.target)
    mounts.detach(container, bound)
    places = Places(container)
    of_links = {link.path for link in linked}
    points = {b.path for b in bound}
    for text in sorted(paths - of_links, reverse=True):  # what is in a directory goes before it
        path = PurePosixPath(text)
        with suppress(FileNotFoundError, PathConflict, UnsupportedRuntime):
            if text in points:
                places.remove_file(path)
            places.remove_directory(path)


def verified(
    container: Container, bound: Iterable[Bound], linked: Iterable[Link]
) -> frozenset[Bound]:
    """Check that all of it is there; return the mounts as they are found.

    Raises NodeUnavailable, PathConflict.
    """
    places = Places(container)
    for link in linked:
        if not link_stands(places, link):
            raise NodeUnavailable(f"{link.path} in the container is not there (any more)")
    return mounts.verified(places, bound)


def remaining(places: Places, bound: Iterable[Bound]) -> frozenset[Bound]:
    """Return the mounts that still stand where they were made."""
    return frozenset(b for b in bound if stands(places, b))


def shown(places: Places, files: Files) -> frozenset[Bound]:
    """Return the mount of the env and ready files' directory as it is found; nothing: none stands.

    Raises OSError where there is no such directory, PathConflict, UnsupportedRuntime.
    """
    directory = files.shown(places.container.id)
    with closing(os.open(directory, _DIRECTORY)) as fd:
        facts = facts_of(fd)
    bound = _bound(places.plain(DIRECTORY), str(directory), facts, _TEXT)
    return mounts.verified(places, remaining(places, (bound,)))


def link_stands(places: Places, link: Link) -> bool:
    """Tell whether the very link is there already. Raises PathConflict for something else."""
    fd = places.standing(PurePosixPath(link.path))
    if fd is None:
        return False
    with closing(fd):
        found = facts_of(fd)
        if stat.S_ISLNK(found.mode) and link_of(fd) == link.target:
            return True
    raise PathConflict(f"something else stands at {link.path}: {stat.filemode(found.mode)[0]}")


class _Planner:
    """Collects what is to be placed, once each."""

    def __init__(self, places: Places, sources: Sources, files: Files) -> None:
        self._container = places.container
        self._sources = sources
        self._files = files
        self._places = places
        self._bound: dict[str, Bound] = {}
        self._linked: dict[str, Link] = {}
        self._standing: set[Bound | Link] = set()

    def add_nodes(self, nodes: Collection[DeviceNode]) -> None:
        """Nothing where a node of that number stands already that is not ours."""
        if not nodes:
            return
        user, root = user_of(self._container), self._sources.node_root
        for node in nodes:
            wanted = permissions(self._places, node, user=user, root=root)
            source = str(self._files.node(self._container.id, node, wanted))
            if not self._stands_already(node, source):
                self._add(PurePosixPath(node.path), source, _NODE)

    def _stands_already(self, node: DeviceNode, source: str) -> bool:
        path = PurePosixPath(node.path)
        found = self._found(path)
        if found is None:
            above = self._above(path)
            check_is_private(self._places, above, path)
            check_appears_nowhere_else(self._places, above, path)
            return False
        ours = self._sources.facts(source)
        is_ours = (found.device, found.inode) == (ours.device, ours.inode)
        return not is_ours and from_file(found.mode, found.number) == node.number

    def _above(self, path: PurePosixPath) -> FileFacts:
        """Return the directory in which something would have to be made."""
        while (found := self._places.standing_directory(path.parent)) is None:
            path = path.parent
        return found

    def add_mount(self, mount: BindMount) -> None:
        path = self._placed(mount.path)
        if any(kernel in (path, *path.parents) for kernel in _KERNEL):
            raise PathConflict(f"{mount.path} is the kernel's: nothing is mounted there")
        read_only = MOUNT_ATTR_RDONLY if mount.read_only else 0
        no_exec = MOUNT_ATTR_NOEXEC if mount.no_exec else 0
        self._add(path, mount.host_path, _SAFE | read_only | no_exec)

    def add_text(self, overlaid: Overlaid) -> None:
        """Nothing where the container has no such file, or the runtime has put its own over it."""
        path = self._placed(overlaid.path)
        if _DRIVER not in path.parents:
            raise PathConflict(f"{overlaid.path} is not below {_DRIVER}")
        source = self._files.text(self._container.id, overlaid.text)
        found = self._found(path)
        if found is None:
            return
        facts = self._sources.facts(str(source))
        is_ours = (found.device, found.inode) == (facts.device, facts.inode)
        if is_ours or not found.is_mount_root:
            self._add(path, str(source), _TEXT)

    def add_link(self, link: Link) -> None:
        """Nothing where the image has a file or another link of that name: it is the image's."""
        path = self._placed(link.path)
        if any(kernel in path.parents for kernel in _KERNEL):
            raise PathConflict(f"{link.path} is the kernel's: nothing is made there")
        plain = Link(str(path), link.target)
        fd = self._places.standing(path)
        if fd is not None:
            with closing(fd):
                kind, said = stat.S_IFMT(facts_of(fd).mode), link_of(fd)
            if said != link.target and kind in {stat.S_IFREG, stat.S_IFLNK}:
                return
            if said != link.target:
                raise PathConflict(f"something else stands at {path}")
            self._standing.add(plain)
        if self._linked.setdefault(plain.path, plain) != plain:
            raise PathConflict(f"two links at {plain.path}")

    def add_shown(self) -> None:
        """The directory of the env and ready files."""
        path = self._placed(DIRECTORY)
        self._add(path, str(self._files.make(self._container.id)), _TEXT)

    def planned(self, unshown: str) -> Plan:
        paths = map(PurePosixPath, (*self._bound, *self._linked))
        return Plan(
            bound=frozenset(self._bound.values()),
            linked=frozenset(self._linked.values()),
            standing=frozenset(self._standing),
            made=frozenset(map(str, self._places.missing(paths))),
            unshown=unshown,
        )

    def _placed(self, text: str) -> PurePosixPath:
        return self._places.plain(str(checked(text)))

    def _found(self, path: PurePosixPath) -> FileFacts | None:
        fd = self._places.standing(path)
        if fd is None:
            return None
        with closing(fd):
            return facts_of(fd)

    def _add(self, path: PurePosixPath, host_path: str, attributes: int) -> None:
        facts = self._sources.facts(host_path)
        bound = _bound(path, host_path, facts, attributes)
        if stands(self._places, bound):
            self._standing.add(bound)
        else:
            check_may_cover(self._places, bound, facts)
        if self._bound.setdefault(bound.path, bound) != bound:
            raise PathConflict(f"two mounts at {bound.path}")


def _bound(path: PurePosixPath, host_path: str, facts: FileFacts, attributes: int) -> Bound:
    return Bound(
        path=str(path),
        host_path=host_path,
        device=facts.device,
        inode=facts.inode,
        attributes=attributes,
    )
