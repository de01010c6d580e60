# SPDX-License-Identifier: Apache-2.0
"""Finds every process of the node that has a device, and says whose it is.

Counted per (container, device number): a process in a container with a grant or an allocation of
its own for a shared number is not our holder. A process elsewhere that could open the device by
itself had it before us and keeps it after: it is named, and blocks nothing. Whatever else is in the
target or the shadow pod blocks, and so does a descriptor passed to somebody who could not open it.
What a process of the target hides may be the device: it blocks too. docs/security.md lists what is
not seen. Runs in a thread of the caller: nearly all of it is system calls, which let others run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Protocol

from devicemount_agent.container.cgroup import CGROUP_ROOT, Cgroup, owner_of, process_cgroup
from devicemount_agent.container.runtimes import RuntimeFacts
from devicemount_agent.errors import ContainerMismatch
from devicemount_agent.graft.access_check import CheckFailed, may_access
from devicemount_agent.holders.describe import command, pid_inside, short_name, states
from devicemount_agent.holders.hidden import hidden
from devicemount_agent.holders.looks import BATCH, STOPPED_WAIT_S, WAIT_S, Looks
from devicemount_agent.holders.process import (
    Held,
    held,
    may_have,
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

BLOCK_DEVICES = Path("/sys/dev/block")
MOUNTED = "has its file system mounted"
UNSTOPPED = "may have it: waits in the kernel, so its pod could not be stopped for the search"
HANDED_ON = "had it while its pod was stopped, and has ended since: another may have it"
UNNAMED = "a process"
DESCRIBED_LIMIT = 32  # as many as are told: each may cost its deadline
_PASSES = 5  # over processes that were born since; a fork bomb must not keep us here

Owner = tuple[PodUID, ContainerID] | tuple[None, None]

LOOKS = Looks()

# What a driver's own tool says of users of its devices, by their pid on the node.
Users = Callable[[frozenset[DeviceNumber]], Mapping[int, frozenset[DeviceNumber]]]


class Rules(Protocol):
    """What the runtime was told that a container may open."""

    @property
    def permitted(self) -> frozenset[DeviceNumber]: ...
    @property
    def runtime(self) -> RuntimeFacts: ...


# Asks the runtime, and waits for its answer; None: it does not say.
Ask = Callable[[ContainerID], Rules | None]


def nobody(_: frozenset[DeviceNumber]) -> Mapping[int, frozenset[DeviceNumber]]:
    """No such tool."""
    return {}


def unsaid(_: ContainerID) -> Rules | None:
    """No runtime to ask."""
    return None


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
    rules: Ask = unsaid
    first: frozenset[int] = frozenset()  # pids; a mount is theirs whose namespace they share


@dataclass(frozen=True, slots=True)
class Found:
    """One process that has a device, or may have it."""

    pid: int  # on the node
    pod_uid: PodUID | None
    container_id: ContainerID | None
    blocking: bool
    note: str = ""
    is_sure: bool = True  # else it may have had the device before us: nobody could say


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


def unstopped(
    pids: Iterable[int], owner: Owner, *, cgroup_root: Path = CGROUP_ROOT
) -> tuple[Sighting, ...]:
    """Name who keeps a pod from being stopped: who waits in the kernel, once the others go on."""
    waiting = (pid for pid in pids if "D" in states(pid))
    found = []
    for pid in islice(waiting, DESCRIBED_LIMIT):
        with suppress(ProcessLookupError):  # it has ended
            pod_uid, container_id = owner_of(pid, root=cgroup_root)
            found.append(Found(pid, pod_uid, container_id, blocking=True, note=UNSTOPPED))
    return _named(found) or unnamed(owner, UNSTOPPED)


def unnamed(owner: Owner, note: str) -> tuple[Sighting, ...]:
    """Tell of a process that is not to be named, but blocks."""
    pod_uid, container_id = owner
    holder = Holder(0, UNNAMED, pod_uid, container_id, blocking=True, note=note)
    return (Sighting(holder, pid=0),)


def find(question: Question, *, among: Iterable[int] | None = None) -> Iterator[Found]:
    """Yield every process (of the node, or among these, which are stopped) that has one of the
    devices, judged. Raises NodeUnavailable where nobody can tell what a process has."""
    look = _Look(question)
    pids = iter(_processes(question.first) if among is None else among)
    wait_s = WAIT_S if among is None else STOPPED_WAIT_S
    while batch := list(islice(pids, BATCH)):
        yield from filter(None, LOOKS.at(batch, look.at, wait_s=wait_s))


class _Look:
    """The look at one process after the other, in one search."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._devices = wanted(question.numbers)
        self._users = question.users(question.numbers)
        self._judge = _Judge(question)
        self._seen: set[str] = set()  # mount namespaces

    def at(self, pid: int) -> Found | None:
        process = _living(self._question, pid)
        if process is None:
            return None
        has = {**used(self._users, pid), **held(pid, self._devices)}
        note = "" if has else MOUNTED
        for namespace in process.tasks.keys() - self._seen:
            has |= mounted(process.tasks[namespace], self._question.numbers)
        self._seen |= process.tasks.keys()
        one = self._judge.judged(process, has) if has else None
        if (
            one is None
            and process.owner[0] == self._question.target
            and (note := hidden(pid) or may_have(pid, self._devices))
        ):
            one = Found(pid, *process.owner, blocking=True)
        return None if one is None else replace(one, note=note)


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
        for above in (BLOCK_DEVICES / f"{number.major}:{number.minor}/holders").glob("*")
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


class _Judge:
    """Says whose holders processes are, in one search: what it asked, it asks once."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._rules = cache(question.rules)
        self._may = cache(self._asked)

    def judged(self, process: _Process, has: Held) -> Found | None:
        """Return None for one that is not our holder, or has ended."""
        pid, (pod_uid, container_id) = process.pid, process.owner
        left = self._not_its_own(process.owner, has)
        if not left:
            return None
        if pod_uid in {self._question.target, self._question.shadow}:
            return Found(pid, pod_uid, container_id, blocking=True)
        try:
            cgroup = process_cgroup(process.task, root=self._question.cgroup_root)
        except ProcessLookupError:
            return None
        except ContainerMismatch:  # nobody can say what it may open
            return Found(pid, pod_uid, container_id, blocking=True, is_sure=False)
        may = [self._may(cgroup, container_id, number, left[number]) for number in left]
        is_sure = all(may) or False in may
        return Found(pid, pod_uid, container_id, blocking=not all(may), is_sure=is_sure)

    def _not_its_own(self, owner: Owner, has: Held) -> Held:
        """Leave out what the process has by another grant of ours, or, in the target pod, by an
        allocation of its container's own."""
        pod_uid, container_id = owner
        if container_id is None:
            return has
        left = {n: a for n, a in has.items() if (container_id, n) not in self._question.granted}
        if not left or pod_uid != self._question.target:
            return left
        rules = self._rules(container_id)
        own = frozenset[DeviceNumber]() if rules is None else rules.permitted
        return {number: access for number, access in left.items() if number not in own}

    def _asked(
        self,
        cgroup: Cgroup,
        container_id: ContainerID | None,
        number: DeviceNumber,
        access: Access,
    ) -> bool | None:
        """Tell whether a container may open a device without us, None where nobody can say.

        The kernel is asked; the runtime where that cannot be, as of a container that was paused.
        """
        try:
            return may_access(cgroup, number, access, hold=self._question.hold)
        except CheckFailed:
            if container_id is None:
                return False
        rules = self._rules(container_id)
        return None if rules is None else rules.runtime.allows_all or number in rules.permitted
