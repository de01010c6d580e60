# SPDX-License-Identifier: Apache-2.0
"""Ends the holders of a device whose reservation is lost: it will be another's within moments.

Only those that block, and never a process of the node. By pidfd, opened before the process is
looked at once more, so that the signal can reach nobody else.
"""

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from devicemount_agent.container.cgroup import CGROUP_ROOT, owner_of
from devicemount_agent.holders.process import held, mount_namespaces, mounted, wanted
from devicemount_agent.holders.search import (
    Found,
    Question,
    Users,
    find,
    named,
    nobody,
    stacked,
    used,
)
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import ContainerID, DeviceNumber, Holder, PodUID

DEADLINE_S = 5.0  # a process that survives it is stuck in the kernel (state D)


def kill(
    numbers: frozenset[DeviceNumber],
    *,
    target: PodUID,
    shadow: PodUID,
    granted: frozenset[tuple[ContainerID, DeviceNumber]],
    hold: Path,
    cgroup_root: Path = CGROUP_ROOT,
    users: Users = nobody,
) -> tuple[Holder, ...]:
    """KILL the blocking holders, search again until there are none; return what is left then."""
    question = Question(
        numbers=numbers,
        target=target,
        shadow=shadow,
        granted=granted,
        hold=hold,
        cgroup_root=cgroup_root,
        users=users,
    )
    deadline = time.monotonic() + DEADLINE_S
    is_late = False
    while True:
        blocking = [one for one in find(question) if one.blocking]
        mortal = [one for one in blocking if one.pod_uid is not None]
        if not mortal or is_late:
            return (*stacked(numbers), *named(blocking))
        _kill(question, mortal, deadline=deadline)
        is_late = time.monotonic() >= deadline  # asked after the signals: they go out in any case


def _kill(question: Question, holders: Iterable[Found], *, deadline: float) -> None:
    """Signal all of them, then wait for their ends."""
    with ExitStack() as stack:
        pidfds = []
        for one in holders:
            with suppress(ProcessLookupError):
                pidfd = stack.enter_context(closing(os.pidfd_open(one.pid)))
                if _is_still(question, one):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    pidfds.append(pidfd)
        for pidfd in pidfds:
            _wait(pidfd, timeout_s=max(0.0, deadline - time.monotonic()))


def _is_still(question: Question, one: Found) -> bool:
    """Say whether the process with this pid is (still) the holder that was found."""
    tasks = mount_namespaces(one.pid).values()
    owners = {owner_of(task, root=question.cgroup_root) for task in tasks}
    users = question.users(question.numbers)
    has = {**used(users, one.pid), **held(one.pid, wanted(question.numbers))}
    mounts = any(mounted(task, question.numbers) for task in tasks)
    return (bool(has) or mounts) and (one.pod_uid, one.container_id) in owners


def _wait(pidfd: int, *, timeout_s: float) -> None:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll(timeout_s * 1000)
