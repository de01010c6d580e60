# SPDX-License-Identifier: Apache-2.0
"""Who takes grants away again on a node, each as its code does it."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.kernel import bpf
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import DeviceNumber

from . import programs
from .containers import NULL, Lab


@dataclass
class Systemd:
    """Attaches its program anew, then detaches its former one (src/core/bpf-devices.c)."""

    lab: Lab
    cgroup: Path
    former: int | None = None

    def reload(self, *allowed: DeviceNumber) -> None:
        code = programs.allow_list([NULL, *allowed])
        new = self.lab.keep(programs.attach(self.cgroup, code, name="sd_devices"))
        if self.former is not None:
            with suppress(FileNotFoundError):  # ours has taken its place
                programs.detach(self.cgroup, self.former)
        self.former = new


@dataclass
class PinningCrun:
    """Loads one program and pins it; systemd attaches that one, over and over (crun 1.23)."""

    cgroup: Path
    pinned: int

    @classmethod
    def start(cls, lab: Lab, cgroup: Path) -> "PinningCrun":
        return cls(cgroup, lab.keep(programs.attach(cgroup, programs.allow_list([NULL]))))

    def reload(self) -> None:
        with suppress(FileNotFoundError):
            programs.detach(self.cgroup, self.pinned)
        programs.attach_again(self.cgroup, self.pinned)


def crun_update(cgroup: Path) -> None:
    """Put a new program in the place of whatever is there (src/libcrun/ebpf.c, crun 1.8)."""
    with closing(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)) as cgroup_fd:
        query = bpf.prog_query(cgroup_fd)
        new = bpf.prog_load(programs.allow_list([NULL]), is_gpl=True, name="")
        with closing(new):
            for place, program_id in enumerate(query.program_ids):
                with closing(bpf.prog_get_fd_by_id(program_id)) as old:
                    if place == 0:
                        bpf.prog_attach(cgroup_fd, new, flags=query.flags, replaced_fd=old)
                    else:
                        bpf.prog_detach(cgroup_fd, old)
