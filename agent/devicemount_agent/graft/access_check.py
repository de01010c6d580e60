# SPDX-License-Identifier: Apache-2.0
"""Asks the kernel what a process in a given cgroup may do with a device.

Not by opening it: that can have side effects (watchdogs, exclusive devices). So `hold check` joins
the cgroup and asks faccessat2(2), which runs the device filters of the cgroup and of all above it.
It is a program of ours, started with nothing but descriptors: never a fork of the agent, and no
path of a tenant is resolved.
"""

import errno
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from devicemount_agent.container.cgroup import Cgroup, CgroupVersion
from devicemount_agent.graft.numbers import mknod_arguments
from devicemount_agent.kernel.files import closing, lines_of
from devicemount_agent.kernel.mount import detached_tmpfs
from devicemount_agent.model import Access, DeviceNumber

TIMEOUT_S = 2.0  # a cgroup that is frozen just then: who joins it stops


class CheckFailed(OSError):
    """The check could not be made: the cgroup is gone, frozen, or takes no processes."""


def refusals(cgroup: Path, nodes: Sequence[tuple[int, Access]], *, hold: Path) -> tuple[int, ...]:
    """Return the errno that access to each node gets from the cgroup, 0 if it is allowed.

    Nodes are given by O_PATH descriptors. Raises CheckFailed.
    """
    try:
        with closing(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as cgroup_fd:
            done = subprocess.run(
                [hold, "check", str(cgroup_fd), *(f"{fd}:{access}" for fd, access in nodes)],
                pass_fds=[cgroup_fd, *(fd for fd, _ in nodes)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env={},
                timeout=TIMEOUT_S,
                check=False,
            )
    except FileNotFoundError as error:
        raise CheckFailed(error.errno, "cannot check from inside", error.filename) from error
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"no answer from inside {cgroup} within {TIMEOUT_S} s") from error
    answers = done.stdout.split()
    if done.returncode != 0 or len(answers) != len(nodes):
        words = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise CheckFailed(f"cannot check from inside {cgroup}: {words}")
    return tuple(int(answer) for answer in answers)


def refused(
    cgroup: Path, want: Mapping[DeviceNumber, Access], *, hold: Path
) -> dict[DeviceNumber, int]:
    """Return which of these a process in the cgroup may not open, with errno. Raises CheckFailed.

    The nodes that are asked about stand in a file system that exists for this question only.
    """
    with ExitStack() as stack:
        root_fd = stack.enter_context(closing(detached_tmpfs()))
        nodes = []
        for name, (number, access) in enumerate(want.items()):
            mode, device = mknod_arguments(number, mode=0o600)
            os.mknod(str(name), mode, device, dir_fd=root_fd)
            node_fd = os.open(str(name), os.O_PATH | os.O_CLOEXEC, dir_fd=root_fd)
            nodes.append((stack.enter_context(closing(node_fd)), access))
        codes = refusals(cgroup, nodes, hold=hold)
    return {number: code for number, code in zip(want, codes, strict=True) if code}


def may_access(cgroup: Cgroup, number: DeviceNumber, access: Access, *, hold: Path) -> bool:
    """Say whether a process in this cgroup may open the device. Raises CheckFailed."""
    if _is_frozen(cgroup):
        raise CheckFailed(f"no answer from inside {cgroup.path}: it is frozen")
    return not refused(cgroup.path, {number: access}, hold=hold)


def _is_frozen(cgroup: Cgroup) -> bool:
    """Say whether who joins it would stop: on v2 only, where the same cgroup freezes."""
    try:
        return cgroup.version is CgroupVersion.V2 and "frozen 1" in lines_of(
            cgroup.path / "cgroup.events"
        )
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return False  # it is gone, or the topmost one, which nobody freezes
