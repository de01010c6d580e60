# SPDX-License-Identifier: Apache-2.0
"""The graft of one container, level-based: say what shall be, whatever was before.

Permission is what counts and what is counted: a container's own (privileged, or from its start) is
never taken, ours is given and taken exactly. `hold` and what asks through it are in verify.py.
"""

import errno
from collections.abc import Iterable, Mapping
from typing import assert_never

from devicemount_agent.container.cgroup import Cgroup, CgroupVersion
from devicemount_agent.errors import TargetNotRunning
from devicemount_agent.graft import filter_v1, subtree
from devicemount_agent.graft.nodes import displace, missing, number_on_node, place
from devicemount_agent.graft.shape import supported
from devicemount_agent.graft.standing import Standing
from devicemount_agent.graft.target import Container
from devicemount_agent.model import Access, DeviceNumber

__all__ = [
    "Container",
    "allowed",
    "displace",
    "earlier",
    "missing",
    "number_on_node",
    "permit",
    "permit_left",
    "place",
    "supported",
]


def earlier(container: Container, numbers: Iterable[DeviceNumber]) -> Mapping[DeviceNumber, Access]:
    """Return what the container may do by rules of its own: for the journal, before a grant.

    Only cgroup v1 keeps ours and its own in one list; on v2 there is nothing to remember. Raises
    TargetNotRunning.
    """
    match container.cgroup.version:
        case CgroupVersion.V1:
            try:
                rules = filter_v1.read(container.cgroup.path)
            except FileNotFoundError as error:
                raise _gone(container) from error
            return {number: rules.entry(number) for number in numbers}
        case CgroupVersion.V2:
            return {}
        case _:
            assert_never(container.cgroup.version)


def allowed(container: Container) -> frozenset[DeviceNumber]:
    """Return the numbers that the kernel allows there by entries of their own.

    On cgroup v2 only those that are ours; on v1 also the container's. Raises OSError.
    """
    match container.cgroup.version:
        case CgroupVersion.V1:
            return filter_v1.read(container.cgroup.path).numbers()
        case CgroupVersion.V2:
            return subtree.granted(container)
        case _:
            assert_never(container.cgroup.version)


def permit(
    container: Container,
    want: Mapping[DeviceNumber, Access],
    *,
    earlier: Mapping[DeviceNumber, Access],
) -> Standing | None:
    """Make the container's grafted permissions exactly `want`; return how they stand. Idempotent.

    `earlier` (cgroup v1) holds every number that was ever granted here, with what `earlier()` said
    of it then; those not in `want` go back to that. A container that is gone has nothing to take,
    and nothing stands there. After an error some of it may be granted: say what shall be once more.
    Raises FilterBlocked, TargetNotRunning.
    """
    try:
        match container.cgroup.version:
            case CgroupVersion.V1:
                return filter_v1.apply(container.cgroup, want, earlier=earlier)
            case CgroupVersion.V2:
                return subtree.apply(container, want)
            case _:
                assert_never(container.cgroup.version)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENODEV}:
            raise
        if want:
            raise _gone(container) from error
        return None


def permit_left(
    cgroup: Cgroup,
    want: Mapping[DeviceNumber, Access],
    *,
    earlier: Mapping[DeviceNumber, Access],
) -> None:
    """Do the same in a cgroup of a container that the runtime calls ended, while there is one.

    Processes of it may have been left. Raises FilterBlocked, OSError.
    """
    try:
        match cgroup.version:
            case CgroupVersion.V1:
                filter_v1.apply(cgroup, want, earlier=earlier)
            case CgroupVersion.V2:
                subtree.apply_left(cgroup.path, want)
            case _:
                assert_never(cgroup.version)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENODEV}:
            raise


def _gone(container: Container) -> TargetNotRunning:
    return TargetNotRunning(f"the cgroup {container.cgroup.path} is gone")
