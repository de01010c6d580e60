# SPDX-License-Identifier: Apache-2.0
"""What grafting needs to know of a container; `container/find.py` makes the real one."""

import errno
import os
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from devicemount_agent.container.cgroup import Cgroup, CgroupVersion, process_cgroup
from devicemount_agent.container.runtimes import RuntimeFacts
from devicemount_agent.model import ContainerID, PodUID

MAX_BELOW = 1024  # cgroups of one container that are looked at; systemd makes some fifty
PATH_LIMIT_BYTES = 4000  # what is so deep that no path leads there is left out, with a name in it
NO_CHILD = 2  # links of a directory of cgroups: its own two


class Container(Protocol):
    """A running container, held by descriptors: neither pid nor path can lead elsewhere."""

    @property
    def id(self) -> ContainerID: ...
    @property
    def pod_uid(self) -> PodUID: ...
    @property
    def name(self) -> str: ...
    @property
    def init_pid(self) -> int: ...
    @property
    def pidfd(self) -> int: ...
    @property
    def root_fd(self) -> int: ...
    @property
    def cgroup(self) -> Cgroup: ...
    @property
    def runtime(self) -> RuntimeFacts: ...
    @property
    def mounts(self) -> frozenset[str]:
        """Return where in it the kubelet asked the runtime for mounts."""

    def check(self) -> None:
        """Raise TargetNotRunning if the process has ended or is another container's now."""


def levels(container: Container) -> tuple[Path, ...]:
    """Return the cgroups from the container's own down to its main process's, topmost first.

    crun puts the process, and in some versions the filter, into a cgroup below the container's; so
    does systemd as init.
    """
    top = container.cgroup.path
    try:
        leaf = process_cgroup(container.init_pid, root=_root(container.cgroup)).path
    except OSError as error:
        if isinstance(error, ProcessLookupError) or error.errno == errno.ENAMETOOLONG:
            return (top,)
        raise
    if not leaf.is_relative_to(top):  # the pid is another's by now
        return (top,)
    between = leaf.relative_to(top).parts
    return tuple(top.joinpath(*between[:depth]) for depth in range(len(between) + 1))


def below(cgroup: Path) -> Iterator[Path]:
    """Yield the cgroups below one, nearest first, a bounded number of them.

    A container may make as many as it likes. One that ends meanwhile is left out.
    """
    return islice(_descendants(cgroup), MAX_BELOW)


def _descendants(cgroup: Path) -> Iterator[Path]:
    waiting = deque([cgroup])
    while waiting:
        for child in _children(waiting.popleft()):
            waiting.append(child)
            yield child


def _children(cgroup: Path) -> Iterator[Path]:
    try:
        if os.stat(cgroup).st_nlink == NO_CHILD:  # noqa: PTH116  # asked for every cgroup, often
            return
        with os.scandir(cgroup) as entries:
            for entry in entries:
                is_near = len(entry.path) < PATH_LIMIT_BYTES
                if is_near and entry.is_dir(follow_symlinks=False):
                    yield cgroup / entry.name
    except FileNotFoundError:
        return


def _root(cgroup: Cgroup) -> Path:
    return cgroup.hierarchy.parent if cgroup.version is CgroupVersion.V1 else cgroup.hierarchy
