# SPDX-License-Identifier: Apache-2.0
"""Finds every process of the node that has a device, and says whose it is.

Counted per (container, device number): a process in a container with a grant of its own for a
shared number is not our holder. A process elsewhere that could open the device by itself had it
before us and keeps it after: it is named, and blocks nothing. Whatever is in the target or the
shadow pod blocks, and so does a descriptor passed to somebody who could not open it. Not seen:
descriptors in flight in a socket, io_uring's fixed files, what a driver derived from a device, a
device behind a detached mount. Runs in a thread of the caller: nearly all of it is system calls,
which let others run.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.container.cgroup import CGROUP_ROOT, owner_of, process_cgroup
from devicemount_agent.graft.access_check import CheckFailed, may_access
from devicemount_agent.holders.describe import command, pid_inside, short_name
from devicemount_agent.holders.process import Held, held, mount_namespaces, mounted, wanted
from devicemount_agent.model import (
    Access,
    ContainerID,
    DeviceNumber,
    Holder,
    NodeType,
    PodUID,
)

DESCRIBED_LIMIT = 32  # as many as are told: each may cost its deadline
_PASSES = 5  # over processes that were born since; a fork bomb must not keep us here


# What a driver's own tool says of users of its devices, by their pid on the node.
Users = Callable[[frozenset[DeviceNumber]], Mapping[int, frozenset[DeviceNumber]]]


def nobody(_: frozenset[DeviceNumber]) -> Mapping[int, frozenset[DeviceNumber]]:
    """No such tool."""
    return {}


@dataclass(frozen=True, slots=True)
class Question:
    """What is searched for, and on whose behalf."""

    numbers: frozenset[DeviceNumber]
    target: PodUID
    shadow: PodUID
    granted: frozenset[tuple[ContainerID, DeviceNumber]]  # by other grants of ours
    hold: Path
    cgroup_root: Path
    users: Users


@dataclass(frozen=True, slots=True)
class Found:
    """One process that has a device."""

    pid: int  # on the node
    pod_uid: PodUID | None
    container_id: ContainerID | None
    blocking: bool


def search(
    numbers: frozenset[DeviceNumber],
    *,
    target: PodUID,
    shadow: PodUID,
    granted: frozenset[tuple[ContainerID, DeviceNumber]],
    hold: Path,
    cgroup_root: Path = CGROUP_ROOT,
    users: Users = nobody,
) -> tuple[Holder, ...]:
    """Return all holders of the devices, those that block first."""
    question = Question(
        numbers=numbers,
        target=target,
        shadow=shadow,
        granted=granted,
        hold=hold,
        cgroup_root=cgroup_root,
        users=users,
    )
    found = sorted(find(question), key=lambda one: (not one.blocking, one.pid))
    return (*stacked(numbers), *named(found))


def find(question: Question) -> Iterator[Found]:
    """Yield every process that has one of the devices, judged."""
    devices = wanted(question.numbers)
    users = question.users(question.numbers)
    seen: set[str] = set()
    allowed: dict[tuple[Path, DeviceNumber, Access], bool] = {}
    for pid in _processes():
        tasks = _inspectable(question, pid)
        if not tasks:
            continue
        has = {**used(users, pid), **held(pid, devices)}
        for namespace in tasks.keys() - seen:
            has |= mounted(tasks[namespace], question.numbers)
        seen |= tasks.keys()
        if has and (one := _judge(question, pid, next(iter(tasks.values())), has, allowed)):
            yield one


def used(users: Mapping[int, frozenset[DeviceNumber]], pid: int) -> Held:
    """Return what a driver says that a process has: it does not say how."""
    return dict.fromkeys(users.get(pid, ()), Access.READ | Access.WRITE)


def named(found: list[Found]) -> tuple[Holder, ...]:
    """Describe processes for the owner; those that have ended by now are left out."""
    holders: list[Holder] = []
    for one in found:
        try:
            is_described = len(holders) < DESCRIBED_LIMIT
            pid = pid_inside(one.pid)
            line = command(one.pid) if is_described else short_name(one.pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        holders.append(
            Holder(
                pid=pid,
                command=line,
                pod_uid=one.pod_uid,
                container_id=one.container_id,
                blocking=one.blocking,
            )
        )
    return tuple(holders)


def stacked(numbers: frozenset[DeviceNumber]) -> tuple[Holder, ...]:
    """Return the kernel's own devices (device mapper, md) on a block device, with pid 0."""
    names = (
        above.name
        for number in sorted(numbers)
        if number.node_type is NodeType.BLOCK
        for above in Path(f"/sys/dev/block/{number.major}:{number.minor}/holders").glob("*")
    )
    return tuple(
        Holder(pid=0, command=name, pod_uid=None, container_id=None, blocking=True)
        for name in names
    )


def _processes() -> Iterator[int]:
    """Yield all processes, then those that have come since, until there are none."""
    seen: set[int] = set()
    for _ in range(_PASSES):
        born = sorted(
            {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()} - seen
        )
        if not born:
            return
        yield from born
        seen.update(born)


def _inspectable(question: Question, pid: int) -> dict[str, int]:
    """Return a process's mount namespaces, none when it has ended or the node hides it from us."""
    try:
        return mount_namespaces(pid)
    except PermissionError:
        if owner_of(pid, root=question.cgroup_root) != (None, None):
            raise
        return {}  # not of a container: it would not block


def _judge(
    question: Question,
    pid: int,
    task: int,
    has: Held,
    allowed: dict[tuple[Path, DeviceNumber, Access], bool],
) -> Found | None:
    """Say whose holder a process is; None if it is not one of ours, or has ended.

    Asks about a living task: of a main thread that has ended, cgroup v1 says "/".
    """
    try:
        pod_uid, container_id = owner_of(task, root=question.cgroup_root)
        cgroup = process_cgroup(task, root=question.cgroup_root)
    except ProcessLookupError:
        return None
    if container_id is not None:
        has = {n: a for n, a in has.items() if (container_id, n) not in question.granted}
    if not has:
        return None
    blocking = pod_uid in {question.target, question.shadow}
    for number, access in () if blocking else has.items():
        key = (cgroup.path, number, access)
        if key not in allowed:
            try:
                allowed[key] = may_access(cgroup, number, access, hold=question.hold)
            except CheckFailed:
                allowed[key] = False  # nothing proves that it had the device before us
        blocking = blocking or not allowed[key]
    return Found(pid=pid, pod_uid=pod_uid, container_id=container_id, blocking=blocking)
