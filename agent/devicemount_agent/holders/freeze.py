# SPDX-License-Identifier: Apache-2.0
"""Stops a pod for the moment in which its processes are searched, so that no descriptor is handed
on behind the search: not to another of its containers either.

A container that its owner froze stays frozen: only what was frozen here is thawed here. Where the
agent dies in between, its mark in /run tells the next one what to thaw. A pod that does not stop in
time (a process waits in the kernel) can be searched all the same; who finds nobody has no proof.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from devicemount_agent.container.cgroup import (
    CGROUP_ROOT,
    Cgroup,
    CgroupVersion,
    freezer_cgroup,
    owner_of,
    processes_in,
)
from devicemount_agent.errors import ContainerMismatch
from devicemount_agent.kernel.files import beginning_of, lines_of, regular_file
from devicemount_agent.logs import line
from devicemount_agent.model import PodUID

# A process stops when its system call ends. A copy of 2 GiB, the most in one call, takes 0.2 s, and
# up to 0.9 s where several share a processor. More would harm: a pod that does not stop stands for
# so long at each attempt, and a thread waits, of which losses have two.
WAIT_S = 2.0
QUICK_S = 0.2  # of who must not wait: most have stopped in milliseconds
_PAUSE_S = 0.001
_GONE = {errno.ENOENT, errno.ENODEV}  # what a cgroup answers that has ended
_MARK_LIMIT_BYTES = 4096 + 8  # a path and a version

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Words:
    """How a version of the freezer is spoken to."""

    file: str
    freeze: str
    thaw: str
    state_file: str  # where it says that all have stopped
    is_frozen: str  # the line that says so


_WORDS = {
    CgroupVersion.V1: _Words("freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN"),
    CgroupVersion.V2: _Words("cgroup.freeze", "1", "0", "cgroup.events", "frozen 1"),
}


@dataclass(slots=True)
class _Stop:
    """A pod that threads keep stopped."""

    threads: int = 0
    cgroup: Cgroup | None = None  # None: nothing of it can be frozen
    is_ours: bool = False  # to be thawed again
    has_failed: bool = False  # it may go on
    begins: threading.Lock = field(default_factory=threading.Lock)


class Freezer:
    """Freezes pods, one mark in a directory of its own for each."""

    def __init__(self, marks: Path, *, cgroup_root: Path = CGROUP_ROOT) -> None:
        self._marks = marks
        self._root = cgroup_root
        self._lock = threading.Lock()
        self._stops: dict[PodUID, _Stop] = {}

    @contextmanager
    def frozen(
        self, pod_uid: PodUID, directory: Path, *, within_s: float = WAIT_S
    ) -> Iterator[bool]:
        """Keep the pod with that cgroup stopped for the block; say whether all of it has stopped.

        Where several threads do so at a time, until the last of them is through. True also of what
        nobody can freeze: the agent's own pod, one that has ended, one without such a cgroup.
        """
        with self._lock:
            stop = self._stops.setdefault(pod_uid, _Stop())
            stop.threads += 1
        try:
            with stop.begins:
                if not stop.is_ours:
                    self._begin(stop, pod_uid, directory)
                cgroup, has_failed = stop.cgroup, stop.has_failed
            yield not has_failed and (cgroup is None or _has_stopped(cgroup, within_s=within_s))
        finally:
            with self._lock:
                stop.threads -= 1
                if not stop.threads:
                    del self._stops[pod_uid]
                    self._end(pod_uid, stop)

    def _end(self, pod_uid: PodUID, stop: _Stop) -> None:
        if stop.is_ours and stop.cgroup is not None:
            _thaw(stop.cgroup)
            self._mark(pod_uid).unlink(missing_ok=True)

    def thaw_left(self) -> None:
        """Thaw what an agent before us froze and could not thaw."""
        for mark in self._marks.glob("*"):
            try:
                self._thaw_marked(mark)
            except OSError as error:  # one container does not keep the node from service
                log.error(line("not thawed", pod_uid=mark.name, error=error))

    def _thaw_marked(self, mark: Path) -> None:
        try:
            version, _, path = _said(mark).partition(" ")
        except (OSError, ValueError) as error:  # not ours, or spoilt: nobody knows what it meant
            log.error(line("removed unreadable mark", pod_uid=mark.name, error=error))
            return mark.unlink(missing_ok=True)
        for known in CgroupVersion:  # a mark that was cut short is older than its freeze
            if version == known.value and Path(path).is_relative_to(self._root):
                _thaw(Cgroup(known, Path(path), self._root))
                log.warning(line("thawed", pod_uid=mark.name))
        mark.unlink(missing_ok=True)

    def _begin(self, stop: _Stop, pod_uid: PodUID, directory: Path) -> None:
        """Mark and freeze, unless somebody else has asked for it."""
        stop.cgroup, stop.has_failed = None, False
        try:
            cgroup = self._cgroup(pod_uid, directory)
            if cgroup is None or _is_asked(cgroup):
                stop.cgroup = cgroup
                return
            self._marks.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._mark(pod_uid).write_text(f"{cgroup.version.value} {cgroup.path}")
            _ask(cgroup)
        except (OSError, ContainerMismatch) as error:
            log.info(line("not frozen", pod_uid=pod_uid, error=error))
            stop.has_failed = not _has_ended(error)
            with suppress(OSError):  # said already; a mark without a freeze only thaws what runs
                self._mark(pod_uid).unlink(missing_ok=True)
            return
        stop.cgroup, stop.is_ours = cgroup, True

    def _cgroup(self, pod_uid: PodUID, directory: Path) -> Cgroup | None:
        """Return the pod's cgroup in the hierarchy that freezes, by a process that is in it.

        None for the agent's own pod: nobody would be left to thaw it.
        """
        if owner_of(os.getpid(), root=self._root)[0] == pod_uid:
            return None
        for pid in processes_in(directory):
            with suppress(ProcessLookupError):
                found = freezer_cgroup(pid, pod_uid=pod_uid, root=self._root)
                if found is not None:
                    return found
        return None

    def _mark(self, pod_uid: PodUID) -> Path:
        return self._marks / pod_uid


def _said(mark: Path) -> str:
    """Return what a mark says. Raises OSError, ValueError for what cannot be one."""
    with regular_file(mark, flags=os.O_NOFOLLOW) as fd:
        raw = beginning_of(fd, limit_bytes=_MARK_LIMIT_BYTES + 1)
    if len(raw) > _MARK_LIMIT_BYTES or b"\0" in raw:
        raise ValueError("is no mark")
    return raw.decode()


def _is_asked(cgroup: Cgroup) -> bool:
    """Tell whether somebody has asked for its freeze."""
    name = {CgroupVersion.V1: "freezer.self_freezing", CgroupVersion.V2: "cgroup.freeze"}
    return (cgroup.path / name[cgroup.version]).read_text().strip() == "1"


def _ask(cgroup: Cgroup) -> None:
    words = _WORDS[cgroup.version]
    (cgroup.path / words.file).write_text(words.freeze)


def _has_stopped(cgroup: Cgroup, *, within_s: float) -> bool:
    """Wait until all of what is to be frozen has stopped; say whether it has in time."""
    words = _WORDS[cgroup.version]
    deadline = time.monotonic() + within_s
    try:
        while words.is_frozen not in lines_of(cgroup.path / words.state_file):
            if time.monotonic() >= deadline:
                log.info(line("not frozen in time", cgroup=cgroup.path))
                return False
            time.sleep(_PAUSE_S)
    except OSError as error:
        log.info(line("not frozen", cgroup=cgroup.path, error=error))
        return _has_ended(error)
    return True


def _has_ended(error: Exception) -> bool:
    """Tell whether a cgroup failed so because it has gone."""
    return isinstance(error, OSError) and error.errno in _GONE


def _thaw(cgroup: Cgroup) -> None:
    words = _WORDS[cgroup.version]
    try:
        (cgroup.path / words.file).write_text(words.thaw)
    except OSError as error:
        if not _has_ended(error):
            raise
