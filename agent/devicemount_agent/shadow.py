# SPDX-License-Identifier: Apache-2.0
"""Shadow pods as the runtime sees them: whether one is what it is said to be, whether it lives, and
its fence.

`hold`, a shadow pod's only process, stays when the pod is deleted, so that the kubelet keeps the
device allocated until we have revoked; it then only renames itself. It ends when we say so, by
SIGUSR1 from outside its pid namespace. Nothing else is ever signalled here: the sandbox must bear
the label of the mount, the process must be of that pod's `hold`.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from devicemount_agent.container.cgroup import owner_of
from devicemount_agent.container.cri import ContainerFacts, SandboxFacts
from devicemount_agent.errors import NodeUnavailable, NotAllowed
from devicemount_agent.kernel.files import closing
from devicemount_agent.kernel.pidfd import has_ended
from devicemount_agent.logs import line
from devicemount_agent.model import ContainerID, MountUID, PodUID
from devicemount_agent.requests import ShadowPod

HOLD = "hold"
SHADOW_LABEL = "devicemount.io/shadow"
DELETED_COMM = b"hold-deleted\n"
NAME_BYTES = 64  # the kernel gives 16 at most
SPARED = b"-997"  # of oom_score_adj: what the kubelet gives to a pod of the class Guaranteed

LATE_S = 70.0  # the fence's 60 s, and what a slow runtime needs to start `hold`
LATE_POLL_S = 0.5
START_POLL_S = 0.25

log = logging.getLogger(__name__)


class Runtime(Protocol):
    """What is asked of the container runtime."""

    async def sandbox(self, pod_uid: PodUID) -> SandboxFacts | None: ...

    async def running(self, pod_uid: PodUID, name: str | None = None) -> ContainerID | None: ...

    async def all_running(self, name: str) -> Mapping[PodUID, ContainerID]: ...

    async def container(self, container_id: ContainerID) -> ContainerFacts | None: ...


class HoldState(Enum):
    """What a `hold` was told."""

    STAYING = "staying"  # nothing: the fence stands
    DELETED = "deleted"  # its pod is being deleted; the fence stands until we lower it
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Hold:
    """A running `hold`. Its descriptors belong to who opened it."""

    pid: int
    pidfd: int
    comm_fd: int  # its name, which no other process can come to stand for

    def state(self) -> HoldState:
        """Read its name. Costs microseconds and never waits."""
        try:
            is_deleted = os.pread(self.comm_fd, NAME_BYTES, 0) == DELETED_COMM
        except ProcessLookupError:
            return HoldState.ENDED
        return HoldState.DELETED if is_deleted else HoldState.STAYING

    def close(self) -> None:
        os.close(self.comm_fd)
        os.close(self.pidfd)


class ShadowPods:
    """The shadow pods of this node."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lowering: dict[PodUID, asyncio.Task[None]] = {}

    def close(self) -> None:
        for task in self._lowering.values():
            task.cancel()

    async def check(self, shadow: ShadowPod, namespace: str, mount_uid: MountUID) -> None:
        """Raise NotAllowed if the pod has a sandbox and that is not this mount's shadow pod."""
        sandbox = await self._runtime.sandbox(shadow.uid)
        if sandbox is None:
            return
        said = (sandbox.namespace, sandbox.name, sandbox.labels.get(SHADOW_LABEL))
        if said != (namespace, shadow.name, mount_uid):
            raise NotAllowed(f"pod {shadow.uid} is {said}, not shadow pod {shadow.name}")

    async def is_staying(self, uid: PodUID, mount_uid: MountUID) -> bool | None:
        """Tell whether the pod's `hold` runs and was not told to end; None: it does not run."""
        hold = await self._hold(uid, mount_uid)
        if hold is None:
            return None
        with _closed_after(hold):
            return hold.state() is HoldState.STAYING

    async def await_fence(self, uid: PodUID, mount_uid: MountUID) -> None:
        """Wait until the pod's `hold` runs, and was not told to end. Raises NodeUnavailable."""
        while True:
            if await self.is_staying(uid, mount_uid):
                return
            await asyncio.sleep(START_POLL_S)

    async def running(self) -> Mapping[PodUID, ContainerID]:
        """Return the containers named as the fence is, of all pods. Raises NodeUnavailable."""
        return await self._runtime.all_running(HOLD)

    async def opened(
        self, uid: PodUID, mount_uid: MountUID, container_id: ContainerID
    ) -> Hold | None:
        """Open a running `hold`, which the caller closes; None: it has ended, or is not one."""
        sandbox = await self._runtime.sandbox(uid)
        if sandbox is None or sandbox.labels.get(SHADOW_LABEL) != mount_uid:
            return None
        facts = await self._runtime.container(container_id)
        if facts is None or not facts.is_running or facts.pid <= 0 or facts.pod_uid != uid:
            return None
        return _opened(facts)

    async def has_sandbox(self, uid: PodUID) -> bool:
        """Tell whether the runtime has a sandbox of the pod that is ready."""
        sandbox = await self._runtime.sandbox(uid)
        return sandbox is not None and sandbox.is_ready

    async def lower_fence(self, uid: PodUID, mount_uid: MountUID) -> None:
        """Let `hold` end: told now, or as soon as it runs, and again until it has ended."""
        if uid in self._lowering:
            return
        hold = await self._hold(uid, mount_uid)
        if hold is not None:
            _tell_lowered(hold)
        if uid not in self._lowering:
            task = asyncio.create_task(self._lower(uid, mount_uid, hold))
            self._lowering[uid] = task
            task.add_done_callback(lambda _: self._lowering.pop(uid))
        elif hold is not None:
            hold.close()

    async def _lower(self, uid: PodUID, mount_uid: MountUID, hold: Hold | None) -> None:
        """Stay behind: one that has only just begun takes no signal yet, and misses what it is
        told."""
        give_up = asyncio.get_running_loop().time() + LATE_S
        while hold is None and asyncio.get_running_loop().time() < give_up:
            await asyncio.sleep(LATE_POLL_S)
            try:
                hold = await self._hold(uid, mount_uid)
            except NodeUnavailable as error:
                log.warning(line("kept fence", shadow_uid=uid, error=error))
        if hold is None:
            return
        log.info(line("lowered fence", shadow_uid=uid, pid=hold.pid))
        with _closed_after(hold):
            while not has_ended(hold.pidfd) and asyncio.get_running_loop().time() < give_up:
                _tell_lowered(hold)
                await asyncio.sleep(LATE_POLL_S)

    async def _hold(self, uid: PodUID, mount_uid: MountUID) -> Hold | None:
        container_id = await self._runtime.running(uid, HOLD)
        return await self.opened(uid, mount_uid, container_id) if container_id else None


def _opened(facts: ContainerFacts) -> Hold | None:
    """Open the process that the runtime named, and only then see that it is the container's."""
    with ExitStack() as stack, suppress(FileNotFoundError, ProcessLookupError):
        pidfd = os.pidfd_open(facts.pid)
        stack.callback(os.close, pidfd)
        comm_fd = os.open(f"/proc/{facts.pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, comm_fd)
        is_it = owner_of(facts.pid) == (facts.pod_uid, facts.id)
        if is_it and not has_ended(pidfd):  # else all of that may have been another's
            _spare(facts.pid, pidfd)
            stack.pop_all()
            return Hold(facts.pid, pidfd, comm_fd)
    return None


def _spare(pid: int, pidfd: int) -> None:
    """Let the kernel, where it is short of memory, kill others first: without it is no fence."""
    with suppress(PermissionError):  # an agent with fewer rights: the fence is as any other process
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        with closing(fd):
            if not has_ended(pidfd):  # else this may have been another's
                os.write(fd, SPARED)


def _tell_lowered(hold: Hold) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(hold.pidfd, signal.SIGUSR1)


@contextmanager
def _closed_after(hold: Hold) -> Iterator[None]:
    try:
        yield
    finally:
        hold.close()
