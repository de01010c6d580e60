# SPDX-License-Identifier: Apache-2.0
"""Finds every process of the node that has a device, and says whose it is.

Counted per (container, device number): a process in a container with a grant of its own for a
shared number is not our holder. A process elsewhere that could open the device by itself had it
before us and keeps it after: it is named, and blocks nothing. Whatever is in the target or the
shadow pod blocks, and so does a descriptor passed to somebody who could not open it. What a process
of the target hides may be the device: it blocks too. docs/security.md lists what is not seen. Runs
in a thread of the caller: nearly all of it is system calls, which let others run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from devicemount_agent.container.cgroup import CGROUP_ROOT, owner_of, process_cgroup
from devicemount_agent.graft.access_check import CheckFailed, may_access
from devicemount_agent.holders.describe import command, pid_inside, short_name
from devicemount_agent.holders.hidden import hidden
from devicemount_agent.holders.process import (
    Held,
    held,
    mount_namespaces,
    mounted,
    patient,
    wanted,
)
from devicemount_agent.model import (
    Access,
    ContainerID,
    DeviceNumber,
    Holder,
    NodeType,
    PodUID,
)

MOUNTED = "has its file system mounted"
DESCRIBED_LIMIT = 32  # as many as are told: each may cost its deadline
_PASSES = 5  # over processes that were born since; a fork bomb must not keep us here

Owner = tuple[PodUID, ContainerID] | tuple[None, None]

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
    cgroup_root: Path = CGROUP_ROOT
    users: Users = nobody
    first: frozenset[int] = frozenset()  # pids; a mount is theirs whose namespace they share


@dataclass(frozen=True, slots=True)
class Found:
    """One process that has a device, or may have it."""

    pid: int  # on the node
    pod_uid: PodUID | None
    container_id: ContainerID | None
    blocking: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Process:
    """A process that lives, and whose it is."""

    pid: int
    tasks: Mapping[str, int]  # one living task for each of its mount namespaces
    owner: Owner

    @property
    def task(self) -> int:
        return next(iter(self.tasks.values()))


@dataclass(frozen=True, slots=True)
class Sighting:
    """A holder as it is told, and where it is."""

    holder: Holder
    pid: int  # on the node; 0: no process


def search(question: Question) -> tuple[Sighting, ...]:
    """Return all holders of the devices, those that block first."""
    return sightings(question, list(find(question)))


def sightings(question: Question, found: list[Found]) -> tuple[Sighting, ...]:
    """Describe who was found, with what the kernel itself has on the devices."""
    in_order = sorted(found, key=lambda one: (not one.blocking, one.pid))
    return (*_stacked(question.numbers), *_named(in_order))


def find(question: Question, *, among: Iterable[int] | None = None) -> Iterator[Found]:
    """Yield every process (of the node, or among these) that has one of the devices, judged."""
    devices = wanted(question.numbers)
    users = question.users(question.numbers)
    seen: set[str] = set()
    allowed: dict[tuple[Path, DeviceNumber, Access], bool] = {}
    for pid in _processes(question.first) if among is None else among:
        process = _living(question, pid)
        if process is None:
            continue
        has = {**used(users, pid), **held(pid, devices)}
        note = "" if has else MOUNTED
        for namespace in process.tasks.keys() - seen:
            has |= mounted(process.tasks[namespace], question.numbers)
        seen |= process.tasks.keys()
        one = _judged(question, process, has=has, allowed=allowed) if has else None
        if one is None and process.owner[0] == question.target and (note := hidden(pid)):
            one = Found(pid, *process.owner, blocking=True)
        if one is not None:
            yield replace(one, note=note)


def used(users: Mapping[int, frozenset[DeviceNumber]], pid: int) -> Held:
    """Return what a driver says that a process has: it does not say how."""
    return dict.fromkeys(users.get(pid, ()), Access.READ | Access.WRITE)


def _named(found: list[Found]) -> tuple[Sighting, ...]:
    """Describe processes for the owner; those that have ended by now are left out."""
    named: list[Sighting] = []
    for one in found:
        try:
            is_described = len(named) < DESCRIBED_LIMIT
            pid = pid_inside(one.pid)
            line = command(one.pid) if is_described else short_name(one.pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        holder = Holder(
            pid=pid,
            command=line,
            pod_uid=one.pod_uid,
            container_id=one.container_id,
            blocking=one.blocking,
            note=one.note,
        )
        named.append(Sighting(holder, one.pid))
    return tuple(named)


def _stacked(numbers: frozenset[DeviceNumber]) -> tuple[Sighting, ...]:
    """Return the kernel's own devices (device mapper, md) on a block device, with pid 0."""
    names = (
        above.name
        for number in sorted(numbers)
        if number.node_type is NodeType.BLOCK
        for above in Path(f"/sys/dev/block/{number.major}:{number.minor}/holders").glob("*")
    )
    return tuple(
        Sighting(Holder(pid=0, command=name, pod_uid=None, container_id=None, blocking=True), pid=0)
        for name in names
    )


def _processes(first: frozenset[int]) -> Iterator[int]:
    """Yield all processes, some of them first, then those that have come since."""
    seen: set[int] = set()
    for _ in range(_PASSES):
        born = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()} - seen
        if not born:
            return
        yield from sorted(born, key=lambda pid: (pid not in first, pid))
        seen.update(born)


def _inspectable(question: Question, pid: int) -> dict[str, int]:
    """Return a process's mount namespaces, none when it has ended or the node hides it from us."""
    try:
        return mount_namespaces(pid)
    except PermissionError:
        try:
            owner = owner_of(pid, root=question.cgroup_root)
        except ProcessLookupError:
            return {}
        # One that is not of a container would not block.
        return {} if owner == (None, None) else patient(mount_namespaces)(pid)


def _living(question: Question, pid: int) -> _Process | None:
    """Return a process with its owner, None if it has ended.

    Asks about a living task: of a main thread that has ended, cgroup v1 says "/".
    """
    tasks = _inspectable(question, pid)
    if not tasks:
        return None
    try:
        owner = owner_of(next(iter(tasks.values())), root=question.cgroup_root)
    except ProcessLookupError:
        return None
    return _Process(pid, tasks, owner)


def _judged(
    question: Question,
    process: _Process,
    *,
    has: Held,
    allowed: dict[tuple[Path, DeviceNumber, Access], bool],
) -> Found | None:
    """Say whose holder a process is; None if it is not one of ours, or has ended."""
    pid, (pod_uid, container_id) = process.pid, process.owner
    if container_id is not None:
        has = {n: a for n, a in has.items() if (container_id, n) not in question.granted}
    if not has:
        return None
    if pod_uid in {question.target, question.shadow}:
        return Found(pid, pod_uid, container_id, blocking=True)
    try:
        cgroup = process_cgroup(process.task, root=question.cgroup_root)
    except ProcessLookupError:
        return None
    blocking = False
    for number, access in has.items():
        key = (cgroup.path, number, access)
        if key not in allowed:
            try:
                allowed[key] = may_access(cgroup, number, access, hold=question.hold)
            except CheckFailed:
                allowed[key] = False  # nothing proves that it had the device before us
        blocking = blocking or not allowed[key]
    return Found(pid, pod_uid, container_id, blocking=blocking)
