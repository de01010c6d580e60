# SPDX-License-Identifier: Apache-2.0
"""What the kernel holds of a container's permissions, and whether it still does.

Nothing tells when somebody changes a device filter on v2: no inotify event, no netlink message. On
v1 inotify tells of a write, if it is through the node's own mount. So it is looked at, over and
over, and must cost next to nothing: one system call on a descriptor that stays open. On v2 the ids
of all programs that run for the main process's cgroup are compared, ancestors' included, on v1 the
text of devices.list.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import assert_never

from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.graft.target import NO_CHILD
from devicemount_agent.kernel import bpf

RULES_BYTES = 65536  # of devices.list: a rule has some twenty


@dataclass(frozen=True, slots=True)
class Standing:
    """How permissions stand when all of them were seen to be as wanted: any difference is drift."""

    version: CgroupVersion
    top: Path  # the container's own cgroup
    leaf: Path  # v2: the main process's
    rules: bytes  # v1: devices.list of `top`; v2: bpf.EffectivePrograms of `leaf`
    below: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)  # v2: others' own programs
    was_made: bool = False  # it was not so before


class Eye:
    """Looks at one container. Owns a descriptor."""

    def __init__(self, standing: Standing, programs: bpf.EffectivePrograms) -> None:
        """Eyes that look one after the other may share `programs`.

        Raises FileNotFoundError when the cgroup is gone.
        """
        self.standing = standing
        self._fd: int
        self.read: Callable[[], bytes]  # what is to be the standing's rules; raises OSError
        self.written_in: tuple[Path, ...] = ()  # where whoever changes them by a file has to write
        match standing.version:
            case CgroupVersion.V1:
                self._fd = os.open(standing.top / "devices.list", os.O_RDONLY | os.O_CLOEXEC)
                self.read = partial(os.pread, self._fd, RULES_BYTES, 0)
                levels = (standing.top, *standing.top.parents)
                self.written_in = tuple(takewhile(_has_rules, levels))
            case CgroupVersion.V2:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                self._fd = os.open(standing.leaf, flags)
                self.read = partial(programs.of, self._fd)
            case _:
                assert_never(standing.version)

    def is_as_it_stood(self) -> bool:
        """Look once. A cgroup that is gone is not as it stood."""
        try:
            return self.read() == self.standing.rules
        except OSError:
            return False

    def may_have_others(self) -> bool:
        """Say whether the container may have more cgroups than those down to its main process."""
        if self.standing.version is CgroupVersion.V1:
            return False  # they have what is theirs by the one that is looked at
        is_own = self.standing.leaf == self.standing.top
        return not is_own or os.fstat(self._fd).st_nlink > NO_CHILD

    def close(self) -> None:
        os.close(self._fd)


def _has_rules(directory: Path) -> bool:
    return (directory / "devices.deny").exists()
