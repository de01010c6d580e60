# SPDX-License-Identifier: Apache-2.0
"""What grafting needs to know of a container; `container/find.py` makes the real one."""

from pathlib import Path
from typing import Protocol

from devicemount_agent.container.cgroup import Cgroup, CgroupVersion, process_cgroup
from devicemount_agent.model import ContainerID, PodUID


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
    except ProcessLookupError:
        return (top,)
    if not leaf.is_relative_to(top):  # the pid is another's by now
        return (top,)
    between = leaf.relative_to(top).parts
    return tuple(top.joinpath(*between[:depth]) for depth in range(len(between) + 1))


def _root(cgroup: Cgroup) -> Path:
    return cgroup.hierarchy.parent if cgroup.version is CgroupVersion.V1 else cgroup.hierarchy
