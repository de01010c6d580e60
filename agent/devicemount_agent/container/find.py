# SPDX-License-Identifier: Apache-2.0
"""From a pod's UID and a container's name to a process that cannot be mistaken for another one.

The runtime names a pid, which may be anybody's by the time it is read. So: a pidfd first, then the
cgroup of that pid must carry the container's id below the pod's UID, and only if the pidfd's
process still lives was all of that about it. From then on the container is file descriptors: its
root, its pidfd, and the path of a cgroup that is checked again. Its main process may make a mount
namespace of its own: then its copy of the root counts, after the checks of a new container.
"""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from devicemount_agent.container.cgroup import Cgroup, container_cgroup
from devicemount_agent.container.cri import ContainerFacts
from devicemount_agent.container.first_process import first_process
from devicemount_agent.container.runtimes import (
    UNKNOWN,
    RuntimeFacts,
    check_handler,
    check_program,
    check_supported,
)
from devicemount_agent.errors import (
    ContainerMismatch,
    DeviceMountError,
    NodeUnavailable,
    TargetNotRunning,
    UnsupportedRuntime,
)
from devicemount_agent.kernel.files import closing, facts_of
from devicemount_agent.kernel.namespace import root_of
from devicemount_agent.kernel.pidfd import has_ended
from devicemount_agent.model import ContainerID, DeviceNumber, PodUID
from devicemount_agent.requests import Target


class Runtime(Protocol):
    """What is asked of the container runtime."""

    async def running(self, pod_uid: PodUID, name: str | None = None) -> ContainerID | None: ...

    async def container(self, container_id: ContainerID) -> ContainerFacts | None: ...

    async def handler(self, pod_uid: PodUID) -> str: ...


@dataclass(frozen=True, slots=True)
class Container:
    """A running container whose identity was proven. Owns its descriptors."""

    id: ContainerID
    pod_uid: PodUID
    target: Target  # as the runtime confirmed it
    init_pid: int
    pidfd: int
    root_fd: int
    cgroup: Cgroup
    runtime: RuntimeFacts = UNKNOWN
    mounts: frozenset[str] = frozenset()  # where the kubelet asked for some
    permitted: frozenset[DeviceNumber] = frozenset()  # devices of its own, since its start
    _root_lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.target.container

    def has_ended(self) -> bool:
        """Tell whether its first process has ended."""
        return has_ended(self.pidfd)

    def check(self) -> None:
        """Raise TargetNotRunning unless this is still the container that was found."""
        if self.has_ended():
            raise TargetNotRunning(f"container {self.id[:12]} has ended")
        now = container_cgroup(self.init_pid, container_id=self.id, pod_uid=self.pod_uid)
        if now != self.cgroup:
            raise TargetNotRunning(f"container {self.id[:12]} has moved to {now.path}")

    def examine(self, check: Callable[["Container"], None]) -> None:
        """Make a check of it, with the copy of its root that its main process has by now.

        Raises TargetNotRunning, and what the check does.
        """
        with self._now() as now:
            check(now)

    def follow(self, check: Callable[["Container"], None]) -> None:
        """Go on with that copy, if there is another one by now, after a check of it.

        The caller holds the pod's lock. Raises TargetNotRunning, and what the check does; then the
        root stays what it was.
        """
        with self._now() as now:
            if now is not self:
                check(now)
                self._replace_root(now.root_fd)

    def close(self) -> None:
        self._root_lock.acquire()  # for good
        os.close(self.root_fd)
        os.close(self.pidfd)

    @contextmanager
    def _now(self) -> Iterator["Container"]:
        """Yield it with another mount of the same root, if its main process has one, else itself.

        Anything else that is its root by now, like a volume, is not followed to.
        """
        try:
            fd = root_of(self.pidfd)
        except OSError as error:
            raise _not_opened(self.init_pid, error) from error
        with closing(fd):
            now, was = facts_of(fd), facts_of(self.root_fd)
            is_same = (now.device, now.inode) == (was.device, was.inode)
            is_copy = is_same and now.mount_id != was.mount_id  # both held, so no id is used again
            yield replace(self, root_fd=fd) if is_copy else self

    def _replace_root(self, fd: int) -> None:
        """Let the same number be another root: a thread at work with it has the one or the other.

        Nothing where it was closed, for want of anybody who waits for this.
        """
        if self._root_lock.acquire(blocking=False):
            try:
                os.dup2(fd, self.root_fd, inheritable=False)
            finally:
                self._root_lock.release()


async def find(
    runtime: Runtime, target: Target, *, pod_uid: PodUID, hint: ContainerID | None
) -> Container:
    """Find the running target container and prove it. The caller closes it.

    Raises TargetNotRunning, ContainerMismatch, UnsupportedRuntime, NodeUnavailable.
    """
    facts = await runtime.container(hint) if hint else None
    if facts is None or not _is_it(facts, target, pod_uid):
        newest = await runtime.running(pod_uid, target.container)
        facts = await runtime.container(newest) if newest else None
    if facts is None or not facts.is_running:
        raise TargetNotRunning(f"container {target.container} of pod {pod_uid} does not run")
    if not _is_it(facts, target, pod_uid):
        raise ContainerMismatch(
            f"container {facts.id[:12]} is {facts.name} of {facts.namespace}/{facts.pod_name}"
            f" ({facts.pod_uid}), not {target.container} of {target.namespace}/{target.pod_name}"
        )
    check_supported(facts.runtime)  # what it calls its process may be anywhere
    if not facts.runtime.is_known():
        check_handler(await runtime.handler(pod_uid))
    pid = facts.pid or await asyncio.to_thread(first_process, facts.id, facts.pod_uid)
    if not pid:
        raise TargetNotRunning(f"container {facts.id[:12]} has no process")
    return _proven(replace(facts, pid=pid))


def _is_it(facts: ContainerFacts, target: Target, pod_uid: PodUID) -> bool:
    said = (facts.pod_uid, facts.namespace, facts.pod_name, facts.name)
    return said == (pod_uid, target.namespace, target.pod_name, target.container)


def _proven(facts: ContainerFacts) -> Container:
    try:
        pidfd = os.pidfd_open(facts.pid)
    except OSError as error:
        raise _not_opened(facts.pid, error) from error
    try:
        cgroup = container_cgroup(facts.pid, container_id=facts.id, pod_uid=facts.pod_uid)
        root_fd = root_of(pidfd)  # not the process's: it may have made a volume its root
    except OSError as error:
        os.close(pidfd)
        raise _not_opened(facts.pid, error) from error
    except ContainerMismatch:
        try:
            _check_machine(facts.pid, pidfd)
        finally:
            os.close(pidfd)
        raise
    container = Container(
        id=facts.id,
        pod_uid=facts.pod_uid,
        target=Target(facts.namespace, facts.pod_name, facts.name),
        init_pid=facts.pid,
        pidfd=pidfd,
        root_fd=root_fd,
        cgroup=cgroup,
        runtime=facts.runtime,
        mounts=facts.mounts,
        permitted=facts.permitted,
    )
    if container.has_ended():  # then the cgroup and the root may have been another process's
        container.close()
        raise TargetNotRunning(f"container {facts.id[:12]} has ended")
    return container


def _check_machine(pid: int, pidfd: int) -> None:
    """Raise UnsupportedRuntime for a virtual machine: it is in its pod's cgroup, not a container's.

    It would never be in another: nobody is to wait for that.
    """
    try:
        check_program(Path(f"/proc/{pid}"))
    except FileNotFoundError:
        return  # it has ended
    except UnsupportedRuntime:
        if not has_ended(pidfd):  # else it was another's
            raise


def _not_opened(pid: int, error: OSError) -> DeviceMountError:
    """Tell a process that has ended from an agent that is short of something."""
    is_ours = error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
    return (NodeUnavailable if is_ours else TargetNotRunning)(f"process {pid}: {error}")
