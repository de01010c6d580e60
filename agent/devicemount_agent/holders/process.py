# SPDX-License-Identifier: Apache-2.0
"""What one process has open, mapped or mounted, as /proc tells it.

Every task with a descriptor table of its own is looked at, also when the main thread has ended.
A terminal may also be had by its other names (holders/terminal.py).
Nothing here waits for a file's server or touches the process's memory: both can be a tenant's, made
to hang whoever looks.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from devicemount_agent.graft.numbers import mknod_arguments
from devicemount_agent.holders import terminal
from devicemount_agent.kernel.files import device_files, lines_of
from devicemount_agent.kernel.pidfd import compare_files
from devicemount_agent.model import Access, DeviceNumber, NodeType

P = ParamSpec("P")
T = TypeVar("T")

ENDING_S: Final = 0.1
LOOK_AGAIN_S: Final = 0.005
ITS_TERMINAL: Final = "a descriptor of /dev/tty, which may be of the device's terminal"

# By what a file says of itself: its type bits and its rdev.
Wanted = Mapping[tuple[int, int], DeviceNumber]
Held = Mapping[DeviceNumber, Access]

_ACCESS = {os.O_RDONLY: Access.READ, os.O_WRONLY: Access.WRITE}


def patient(look: Callable[P, T]) -> Callable[P, T]:
    """Look again while it is forbidden, for a moment: a process that is ending hides what it has
    before it is gone. Raises PermissionError for one that goes on hiding it."""

    @wraps(look)
    def looked(*arguments: P.args, **named: P.kwargs) -> T:
        give_up = time.monotonic() + ENDING_S
        while True:
            try:
                return look(*arguments, **named)
            except PermissionError:
                if time.monotonic() >= give_up:
                    raise
            time.sleep(LOOK_AGAIN_S)

    return looked


def wanted(numbers: frozenset[DeviceNumber]) -> Wanted:
    return {mknod_arguments(number, mode=0): number for number in numbers}


_STAND_INS = wanted(terminal.STAND_INS)


@patient
def held(pid: int, devices: Wanted) -> Held:
    """Return which of the devices a process has open or mapped, or as its controlling terminal,
    and how."""
    found: dict[DeviceNumber, Access] = {}
    controlling = devices.get((stat.S_IFCHR, terminal.controlling(pid)))
    if controlling is not None:
        found[controlling] = Access.READ | Access.WRITE  # it can open /dev/tty at any time
    for table in tables(pid):
        for name, number in _matching(f"{table}/fd", devices):
            _add_descriptor(found, number, f"{table}/fdinfo/{name}")
    directory = _mappings(pid)
    for name, number in _matching(directory, devices):
        access = _mapping_access(f"{directory}/{name}")
        found[number] = found.get(number, Access.NONE) | access
    return found


@patient
def may_have(pid: int, devices: Wanted) -> str:
    """Say by what else a process may have one of the devices, in a few words; empty: by nothing."""
    if not terminal.are_terminals(rdev for kind, rdev in devices if kind == stat.S_IFCHR):
        return ""
    for table in tables(pid):
        for name, _ in _matching(f"{table}/fd", _STAND_INS):
            if _descriptor_access(f"{table}/fdinfo/{name}"):
                return ITS_TERMINAL
    return ""


def mount_namespaces(pid: int) -> dict[str, int]:
    """Return the mount namespaces of a process, each with a living task in it; none when it ended.

    Raises PermissionError for a process that the agent may not inspect.
    """
    found: dict[str, int] = {}
    for task in _names(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            found.setdefault(str(Path(f"/proc/{task}/ns/mnt").readlink()), int(task))
    return found


@patient
def mounted(task: int, numbers: frozenset[DeviceNumber]) -> Held:
    """Return which of the block devices carry a file system that the task's namespace mounts."""
    blocks = [number for number in numbers if number.node_type is NodeType.BLOCK]
    if not blocks:
        return {}
    try:
        lines = lines_of(f"/proc/{task}/mountinfo")
    except (FileNotFoundError, ProcessLookupError):
        return {}
    except OSError as error:
        if error.errno == errno.EINVAL:  # it is ending: no namespace any more
            return {}
        raise
    devices = {line.split(" ", 3)[2] for line in lines if line}
    return {
        number: Access.READ | Access.WRITE
        for number in blocks
        if f"{number.major}:{number.minor}" in devices
    }


def _matching(directory: str, devices: Wanted) -> Iterator[tuple[str, DeviceNumber]]:
    """Yield the links that lead to the devices."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for name, mode, rdev in device_files(directory):
            number = devices.get((stat.S_IFMT(mode), rdev))
            if number is not None:
                yield name, number


def _add_descriptor(found: dict[DeviceNumber, Access], number: DeviceNumber, info: str) -> None:
    if found.get(number) == Access.READ | Access.WRITE:
        return
    access = _descriptor_access(info)
    if access:
        found[number] = found.get(number, Access.NONE) | access


def tables(pid: int) -> Iterator[str]:
    """Yield, for each descriptor table of a process, one task's directory of /proc.

    Tables have an order: a tenant may have made one for each of many thousand threads.
    """
    seen: list[int] = []
    for task in map(int, _names(f"/proc/{pid}/task")):
        with suppress(ProcessLookupError):  # one of the two has ended: look at it in any case
            place = _place_of_table(task, seen)
            if place is None:
                continue
            seen.insert(place, task)
        yield f"/proc/{pid}/task/{task}"


def _place_of_table(task: int, seen: list[int]) -> int | None:
    """Return where a task's table belongs among those seen, None if it is one of them.

    Raises ProcessLookupError.
    """
    low, high = 0, len(seen)
    while low < high:
        middle = (low + high) // 2
        order = compare_files(task, seen[middle])
        if order == 0:
            return None
        low, high = (low, middle) if order < 0 else (middle + 1, high)
    return low


def _mappings(pid: int) -> str:
    """Return where the mapped files are: all tasks share them, an ended one shows none."""
    tasks = _names(f"/proc/{pid}/task")
    directories = (f"/proc/{task}/map_files" for task in tasks[:-1])
    return next(filter(_names, directories), f"/proc/{tasks[-1] if tasks else pid}/map_files")


def _names(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _descriptor_access(info: str) -> Access:
    """Return how a descriptor was opened; O_PATH ones hold nothing."""
    try:
        text = lines_of(info)
    except (FileNotFoundError, ProcessLookupError):
        return Access.NONE
    lines = dict(line.split(":\t", 1) for line in text if ":\t" in line)
    flags = int(lines["flags"], 8)
    if flags & os.O_PATH:
        return Access.NONE
    return _ACCESS.get(flags & os.O_ACCMODE, Access.READ | Access.WRITE)


def _mapping_access(link: str) -> Access:
    """Return how the mapped file was opened, which the link's own permissions say."""
    try:
        mode = os.lstat(link).st_mode
    except (FileNotFoundError, ProcessLookupError):
        return Access.READ
    return Access.READ | (Access.WRITE if mode & stat.S_IWUSR else Access.NONE)
