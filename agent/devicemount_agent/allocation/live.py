# SPDX-License-Identifier: Apache-2.0
"""Reader `live`: the running shadow container itself, which shows whatever its runtime did.

Its process is `hold`, which makes no node and no mount, and it is proven by its cgroup before
anything is read. Names in it are looked at below its root, without following links: a runtime makes
nodes, and what a link there would lead to is none of the allocation.
"""

import asyncio
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.allocation.grafted import mounted
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.said import LIBRARY_PATH, NODES_LIMIT, Said, Subject, joined
from devicemount_agent.allocation.shown import (
    Runtime,
    is_asked,
    is_mountable,
    is_standard_node,
    is_vendors_mount,
    node_shown,
    running_hold,
)
from devicemount_agent.container.cgroup import owner_of
from devicemount_agent.container.cri import ContainerFacts
from devicemount_agent.errors import AllocationUnknown
from devicemount_agent.graft.mountinfo import Mounted, mounts_of, parsed
from devicemount_agent.kernel.files import closing
from devicemount_agent.kernel.pidfd import has_ended
from devicemount_agent.model import ContainerID, DeviceNumber, Edits, EnvVar, PodUID

NODE_MOUNTS = "/proc/1/mountinfo"
MOUNTS_LIMIT_BYTES = 64 << 20  # 500 pods have some 10,000 mounts, of 300 bytes each
DEPTH_LIMIT = 16  # of directories in /dev: the kernel's own have 3
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class View:
    """What a container's process shows, taken while it lived."""

    nodes: tuple[tuple[str, DeviceNumber], ...]
    mounts: tuple[Mounted, ...]
    library_path: str | None


class Live:
    """Shadow containers as they are."""

    def __init__(self, host: Host, runtime: Runtime) -> None:
        self._host = host
        self._runtime = runtime

    async def read(self, subject: Subject) -> Said | None:
        """Wait for the shadow container, then look at it; None where it shows no device."""
        facts = await running_hold(self._runtime, subject.shadow_uid)
        view = await asyncio.to_thread(view_of, facts)
        return await asyncio.to_thread(self._shown, subject, facts, view)

    def _shown(self, subject: Subject, facts: ContainerFacts, view: View) -> Said | None:
        nodes = tuple(
            node
            for path, number in view.nodes
            if not is_standard_node(path) and not is_asked(path, facts.mounts)
            if (node := node_shown(self._host, subject, path, number)) is not None
        )
        if not nodes:
            return None
        files = (
            mounted(
                self._host,
                subject.profile,
                source,
                path=str(mount.point),
                read_only=mount.is_read_only,
            )
            for mount, source in self._sources(view, facts)
            if is_mountable(self._host, subject, source)
        )
        env = () if view.library_path is None else (EnvVar(LIBRARY_PATH, view.library_path),)
        return joined(subject.resource, Said(nodes), *files, Said(edits=Edits(env=env)))

    def _sources(self, view: View, facts: ContainerFacts) -> Iterator[tuple[Mounted, str]]:
        """Yield the vendor's mounts with what they are on the node."""
        text = self._host.text(NODE_MOUNTS, limit_bytes=MOUNTS_LIMIT_BYTES)
        on_node = parsed(text.removesuffix("\n").split("\n"))
        for mount in view.mounts:
            if is_vendors_mount(str(mount.point), facts.mounts):
                source = source_of(mount, on_node)
                if source is not None:
                    yield mount, source


def view_of(facts: ContainerFacts) -> View:
    """Look at the container's first process. Raises AllocationUnknown unless it is that."""
    process = f"/proc/{facts.pid}"
    try:
        with closing(os.pidfd_open(facts.pid)) as pidfd:
            if owner_of(facts.pid) != (PodUID(facts.pod_uid), ContainerID(facts.id)):
                raise AllocationUnknown(f"process {facts.pid} is not the shadow pod's")
            root_flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            with (
                closing(os.open(f"{process}/root", root_flags)) as root_fd,
                closing(os.open("dev", _DIRECTORY, dir_fd=root_fd)) as dev_fd,
            ):
                nodes = tuple(_nodes_below(dev_fd, "/dev"))
            view = View(
                nodes,
                mounts_of(Path(process)),
                _library_path(f"{process}/environ"),
            )
            if has_ended(pidfd):  # then it may all have been another process's
                raise AllocationUnknown("the shadow pod's container has ended")
            return view
    except (FileNotFoundError, ProcessLookupError) as error:
        raise AllocationUnknown("the shadow pod's container has ended") from error


def source_of(mount: Mounted, on_node: tuple[Mounted, ...]) -> str | None:
    """Return where on the node a bind mount's source is, None where it is nowhere.

    The node's mount of the same file system that holds it most closely; a later one hides it.
    """
    best: tuple[int, str] | None = None
    for other in on_node:
        if other.device != mount.device:
            continue
        if other.root in {mount.root, "/"} or mount.root.startswith(f"{other.root}/"):
            rest = mount.root.removeprefix(other.root).lstrip("/")
            place = str(other.point / rest)
            if best is None or len(other.root) >= best[0]:
                best = (len(other.root), place)
    return best[1] if best else None


def _nodes_below(
    directory_fd: int, path: str, *, depth: int = 1
) -> Iterator[tuple[str, DeviceNumber]]:
    if depth > DEPTH_LIMIT:
        raise AllocationUnknown(f"the shadow pod has more than {DEPTH_LIMIT} directories in /dev")
    with os.scandir(directory_fd) as entries:
        names = sorted(entry.name for entry in entries)[:NODES_LIMIT]
    for name in names:
        facts = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        place = f"{path}/{name}"
        if stat.S_ISDIR(facts.st_mode):
            if is_standard_node(f"{place}/x"):
                continue
            with closing(os.open(name, _DIRECTORY, dir_fd=directory_fd)) as below_fd:
                yield from _nodes_below(below_fd, place, depth=depth + 1)
        elif stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode):
            kind = "c" if stat.S_ISCHR(facts.st_mode) else "b"
            yield place, DeviceNumber(kind, os.major(facts.st_rdev), os.minor(facts.st_rdev))


def _library_path(environ: str) -> str | None:
    """Return the one variable of the environment that a runtime's hook adds and programs need.

    All others of it are in the answer or in the pod's spec, and `hold`'s image sets none.
    """
    with open(environ, "rb") as file:  # noqa: PTH123
        variables = file.read(1 << 17).split(b"\0")
    name = f"{LIBRARY_PATH}=".encode()
    found = next((v.removeprefix(name) for v in variables if v.startswith(name)), None)
    return found.decode("utf-8", "replace") if found is not None else None
