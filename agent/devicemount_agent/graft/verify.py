# SPDX-License-Identifier: Apache-2.0
"""Success is verified: from the container's root and from inside its cgroup."""

import errno
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import assert_never

from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.errors import FilterBlocked, UnsupportedRuntime
from devicemount_agent.graft import filter_v1, filter_v2
from devicemount_agent.graft.access_check import may_access, refusals, refused
from devicemount_agent.graft.nodes import open_node
from devicemount_agent.graft.places import Places
from devicemount_agent.graft.target import Container, levels
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import Access, DeviceNode, DeviceNumber

__all__ = ["may_access", "verify", "verify_access"]


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
            why = _why(container, node.number, node.access)
            raise FilterBlocked(f"{node.path}: {errno.errorcode.get(code, code)}, {why}")


def verify_access(container: Container, want: Mapping[DeviceNumber, Access], *, hold: Path) -> None:
    """Check that the container's main process may use these devices, wherever their files are.

    Raises FilterBlocked (naming the cgroup), TargetNotRunning, CheckFailed.
    """
    found = refused(levels(container)[-1], want, hold=hold) if want else {}
    container.check()
    for number, code in found.items():
        device = f"{number.kind} {number.major}:{number.minor} {want[number]}"
        why = _why(container, number, want[number])
        raise FilterBlocked(f"{device}: {errno.errorcode.get(code, code)}, {why}")


def _why(container: Container, number: DeviceNumber, access: Access) -> str:
    """Name the cgroups above the container's that may be what denies."""
    cgroup = container.cgroup
    above = [path for path in cgroup.path.parents if path.is_relative_to(cgroup.hierarchy)]
    match cgroup.version:
        case CgroupVersion.V1:
            denying = [p for p in above if not filter_v1.read(p).allows(number, access)]
        case CgroupVersion.V2:
            denying = [path for path in above if filter_v2.may_deny(path)]
        case _:
            assert_never(cgroup.version)
    names = ", ".join(str(path) for path in denying)
    return f"denied by the device filter of {names}" if names else "no cgroup above it denies"
