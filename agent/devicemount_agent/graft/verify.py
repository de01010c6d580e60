# SPDX-License-Identifier: Apache-2.0
"""Success is verified: from the container's root and from inside its cgroup."""

import errno
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import assert_never

from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.errors import FilterBlocked, UnsupportedRuntime
from devicemount_agent.graft import filter_v1, filter_v2
from devicemount_agent.graft.access_check import may_access, refusals
from devicemount_agent.graft.nodes import open_node
from devicemount_agent.graft.places import Places
from devicemount_agent.graft.target import Container, levels
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import DeviceNode

__all__ = ["may_access", "verify"]


def verify(container: Container, nodes: Iterable[DeviceNode], *, hold: Path) -> None:
    """Check that a process of the container could open each node.

    It is there, on no nodev mount, and not denied. Raises PathConflict, UnsupportedRuntime,
    FilterBlocked (naming the cgroup), TargetNotRunning, CheckFailed.
    """
    nodes, places = tuple(nodes), Places(container)
    with ExitStack() as stack:
        fds = [stack.enter_context(closing(open_node(places, node))) for node in nodes]
        for node, fd in zip(nodes, fds, strict=True):
            if os.fstatvfs(fd).f_flag & os.ST_NODEV:  # faccessat would say yes, open(2) EACCES
                raise UnsupportedRuntime(f"{node.path} is on a nodev mount")
        leaf = levels(container)[-1]
        ruled = [(node, fd) for node, fd in zip(nodes, fds, strict=True) if node.access]
        codes = refusals(leaf, [(fd, node.access) for node, fd in ruled], hold=hold)
    container.check()
    for (node, _), code in zip(ruled, codes, strict=True):
        if code:
            raise FilterBlocked(
                f"{node.path}: {errno.errorcode.get(code, code)}, {_why(container, node)}"
            )


def _why(container: Container, node: DeviceNode) -> str:
    """Name the cgroups above the container's that may be what denies."""
    cgroup = container.cgroup
    above = [path for path in cgroup.path.parents if path.is_relative_to(cgroup.hierarchy)]
    match cgroup.version:
        case CgroupVersion.V1:
            denying = [p for p in above if not filter_v1.read(p).allows(node.number, node.access)]
        case CgroupVersion.V2:
            denying = [path for path in above if filter_v2.is_filtered(path)]
        case _:
            assert_never(cgroup.version)
    names = ", ".join(str(path) for path in denying)
    return f"denied by the device filter of {names}" if names else "no cgroup above it denies"
