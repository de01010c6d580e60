# SPDX-License-Identifier: Apache-2.0
"""All cgroups of one container on v2: every filter that can deny its processes is wrapped.

Which these are changes: crun puts process and filter a level deeper,
systemd as init makes cgroups of its own, and a nested runtime filters these. A container that
nothing restricts down to its main process is privileged: how it restricts parts of itself is its
own affair.
"""

import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.graft import filter_v2
from devicemount_agent.graft.standing import Standing
from devicemount_agent.graft.target import Container, below, levels
from devicemount_agent.model import Access, DeviceNumber

_ATTEMPTS = 5  # each one is lost only to somebody who changes a filter at that very moment


def apply(container: Container, want: Mapping[DeviceNumber, Access]) -> Standing:
    """Make the grafted permissions of all of a container's cgroups exactly `want`. Idempotent.

    Raises FilterBlocked, FileNotFoundError when it is gone, OSError EAGAIN.
    """
    was_made = False
    for _ in range(_ATTEMPTS):
        way = levels(container)
        applied = {level: filter_v2.apply(level, want) for level in way}
        is_restricted = any(one.is_restricted for one in applied.values())
        nested = _apply_below(container.cgroup.path, way, want if is_restricted else {})
        was_made |= any(one.was_made for one in (*applied.values(), *nested.values()))
        rules = filter_v2.effective(way[-1])
        # Asked between two looks that saw the same, it is what was found to be right.
        if all(filter_v2.attached(level) == one.program_ids for level, one in applied.items()):
            return Standing(
                version=CgroupVersion.V2,
                top=container.cgroup.path,
                leaf=way[-1],
                rules=rules,
                below={level: one.program_ids for level, one in nested.items() if one.program_ids},
                was_made=was_made,
            )
    raise OSError(errno.EAGAIN, "the device filter keeps changing", str(container.cgroup.path))


def granted(container: Container) -> frozenset[DeviceNumber]:
    """Return what programs of ours allow in any of the container's cgroups."""
    return _granted_in((*levels(container), *below(container.cgroup.path)))


def is_grafted(top: Path) -> bool:
    """Say whether a program of ours allows anything in a cgroup or below it."""
    return bool(_granted_in((top, *below(top))))


def _granted_in(cgroups: Iterable[Path]) -> frozenset[DeviceNumber]:
    found: set[DeviceNumber] = set()
    for level in dict.fromkeys(cgroups):
        with _unless_gone():
            found |= filter_v2.granted(level)
    return frozenset(found)


def apply_left(top: Path, want: Mapping[DeviceNumber, Access]) -> None:
    """Make the grafted permissions of a cgroup and of those below it, of all alike, `want`."""
    filter_v2.apply(top, want)
    for level in below(top):
        with _unless_gone():
            filter_v2.apply(level, want)


def changed_below(standing: Standing, level: Path) -> bool:
    """Say whether a cgroup below the container's has other programs than it had."""
    if level == standing.leaf or level in standing.leaf.parents:
        return False  # these are seen together
    with _unless_gone():
        return filter_v2.attached(level) != standing.below.get(level, ())
    return False


def _apply_below(
    top: Path, way: tuple[Path, ...], want: Mapping[DeviceNumber, Access]
) -> dict[Path, filter_v2.Applied]:
    applied = {}
    for level in below(top):
        if level not in way:
            with _unless_gone():
                applied[level] = filter_v2.apply(level, want)
    return applied


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Leave out a cgroup that ends meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENODEV}:
            raise
