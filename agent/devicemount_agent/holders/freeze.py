# SPDX-License-Identifier: Apache-2.0
"""Stops a pod for the moment in which its processes are searched, so that no descriptor is handed
on behind the search: not to another of its containers either.

A container that its owner froze stays frozen: only what was frozen here is thawed here. Where the
agent dies in between, its mark in /run tells the next one what to thaw. A pod that cannot be
frozen in time (a process waits in the kernel) is searched as it is.
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
from devicemount_agent.kernel.files import lines_of
from devicemount_agent.logs import line
from devicemount_agent.model import PodUID

WAIT_S = 0.2
_PAUSE_S = 0.001

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
    cgroup: Cgroup | None = None  # None also where nothing is to be thawed again
    begins: threading.Lock = field(default_factory=threading.Lock)


class Freezer:
    """Freezes pods, one mark in a directory of its own for each."""

    def __init__(self, marks: Path, *, cgroup_root: Path = CGROUP_ROOT) -> None:
        self._marks = marks
        self._root = cgroup_root
        self._lock = threading.Lock()
        self._stops: dict[PodUID, _Stop] = {}

    @contextmanager
    def frozen(self, pod_uid: PodUID, directory: Path) -> Iterator[None]:
        """Keep the pod with that cgroup stopped for the block, if that can be done in time.

        Where several threads do so at a time, until the last of them is through.
        """
        with self._lock:
            stop = self._stops.setdefault(pod_uid, _Stop())
            stop.threads += 1
        try:
            with stop.begins:
                if stop.cgroup is None:
                    stop.cgroup = self._begun(pod_uid, directory)
            yield
        finally:
            with self._lock:
                stop.threads -= 1
                if not stop.threads:
                    del self._stops[pod_uid]
                    self._end(pod_uid, stop)

    def _end(self, pod_uid: PodUID, stop: _Stop) -> None:
        if stop.cgroup is not None:
            _thaw(stop.cgroup)
            self._mark(pod_uid).unlink()

    def thaw_left(self) -> None:
        """Thaw what an agent before us froze and could not thaw."""
        for mark in self._marks.glob("*"):
            try:
                self._thaw_marked(mark)
            except OSError as error:  # one container does not keep the node from service
                log.error(line("not thawed", pod_uid=mark.name, error=error))

    def _thaw_marked(self, mark: Path) -> None:
        version, _, path = mark.read_text().partition(" ")
        for known in CgroupVersion:  # a mark that was cut short is older than its freeze
            if version == known.value and Path(path).is_relative_to(self._root):
                _thaw(Cgroup(known, Path(path), self._root))
                log.warning(line("thawed", pod_uid=mark.name))
        mark.unlink()

    def _begun(self, pod_uid: PodUID, directory: Path) -> Cgroup | None:
        """Mark and freeze; None where nothing is to be thawed again."""
        try:
            cgroup = self._cgroup(pod_uid, directory)
            if cgroup is None or _is_frozen(cgroup):
                return None
            self._marks.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._mark(pod_uid).write_text(f"{cgroup.version.value} {cgroup.path}")
        except (OSError, ContainerMismatch) as error:
            log.info(line("not frozen", pod_uid=pod_uid, error=error))
            return None
        _freeze(cgroup)
        return cgroup

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


def _is_frozen(cgroup: Cgroup) -> bool:
    """Tell whether somebody has frozen it already."""
    name = {CgroupVersion.V1: "freezer.self_freezing", CgroupVersion.V2: "cgroup.freeze"}
    return (cgroup.path / name[cgroup.version]).read_text().strip() == "1"


def _freeze(cgroup: Cgroup) -> None:
    """Ask for it, and wait for a moment until all have stopped."""
    words = _WORDS[cgroup.version]
    deadline = time.monotonic() + WAIT_S
    try:
        (cgroup.path / words.file).write_text(words.freeze)
        while words.is_frozen not in lines_of(cgroup.path / words.state_file):
            if time.monotonic() >= deadline:
                log.info(line("not frozen in time", cgroup=cgroup.path))
                return
            time.sleep(_PAUSE_S)
    except OSError as error:  # it has ended
        log.info(line("not frozen", cgroup=cgroup.path, error=error))


def _thaw(cgroup: Cgroup) -> None:
    words = _WORDS[cgroup.version]
    try:
        (cgroup.path / words.file).write_text(words.thaw)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENODEV}:  # it has ended
            raise
