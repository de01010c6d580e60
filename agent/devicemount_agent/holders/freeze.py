# SPDX-License-Identifier: Apache-2.0
"""Stops a container for the moment in which its processes are searched, so that no descriptor is
handed on behind the search.

A container that its owner froze stays frozen: only what was frozen here is thawed here. Where the
agent dies in between, its mark in /run tells the next one what to thaw. A container that cannot be
frozen in time (a process waits in the kernel) is searched as it is.
"""

import errno
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.container.cgroup import (
    CGROUP_ROOT,
    Cgroup,
    CgroupVersion,
    freezer_cgroup,
)
from devicemount_agent.container.find import Container
from devicemount_agent.errors import ContainerMismatch
from devicemount_agent.kernel.files import lines_of
from devicemount_agent.logs import line
from devicemount_agent.model import ContainerID

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


class Freezer:
    """Freezes containers, one mark in a directory of its own for each."""

    def __init__(self, marks: Path, *, cgroup_root: Path = CGROUP_ROOT) -> None:
        self._marks = marks
        self._root = cgroup_root
        self._lock = threading.Lock()
        self._stopped: set[ContainerID] = set()

    @contextmanager
    def frozen(self, container: Container) -> Iterator[None]:
        """Keep the container stopped for the block, if that can be done in time.

        Where another thread has stopped it already, only for as long as that one does.
        """
        with self._lock:
            is_first = container.id not in self._stopped
            self._stopped.add(container.id)
        try:
            with self._frozen(container) if is_first else nullcontext():
                yield
        finally:
            if is_first:
                self._stopped.discard(container.id)

    @contextmanager
    def _frozen(self, container: Container) -> Iterator[None]:
        cgroup = self._begun(container)
        try:
            yield
        finally:
            if cgroup is not None:
                _thaw(cgroup)
                self._mark(container).unlink()

    def thaw_left(self) -> None:
        """Thaw what an agent before us froze and could not thaw."""
        for mark in self._marks.glob("*"):
            try:
                self._thaw_marked(mark)
            except OSError as error:  # one container does not keep the node from service
                log.error(line("not thawed", container=mark.name[:12], error=error))

    def _thaw_marked(self, mark: Path) -> None:
        version, _, path = mark.read_text().partition(" ")
        for known in CgroupVersion:  # a mark that was cut short is older than its freeze
            if version == known.value and Path(path).is_relative_to(self._root):
                _thaw(Cgroup(known, Path(path), self._root))
                log.warning(line("thawed", container=mark.name[:12]))
        mark.unlink()

    def _begun(self, container: Container) -> Cgroup | None:
        """Mark and freeze; None where nothing is to be thawed again."""
        try:
            cgroup = freezer_cgroup(
                container.init_pid,
                container_id=container.id,
                pod_uid=container.pod_uid,
                root=self._root,
            )
            if cgroup is None or _is_frozen(cgroup):
                return None
            self._marks.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._mark(container).write_text(f"{cgroup.version.value} {cgroup.path}")
        except (OSError, ContainerMismatch) as error:
            log.info(line("not frozen", container=container.id[:12], error=error))
            return None
        _freeze(cgroup)
        return cgroup

    def _mark(self, container: Container) -> Path:
        return self._marks / container.id


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
