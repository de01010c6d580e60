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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from devicemount_agent.container.cgroup import owner_of
from devicemount_agent.container.cri import ContainerFacts, SandboxFacts
from devicemount_agent.errors import NodeUnavailable, NotAllowed
from devicemount_agent.logs import line
from devicemount_agent.model import ContainerID, MountUID, PodUID
from devicemount_agent.requests import ShadowPod

HOLD = "hold"
SHADOW_LABEL = "devicemount.io/shadow"
DELETED_NAME = "hold-deleted"

LATE_S = 70.0  # the fence's 60 s, and what a slow runtime needs to start `hold`
LATE_POLL_S = 0.5

log = logging.getLogger(__name__)


class Runtime(Protocol):
    """What is asked of the container runtime."""

    async def sandbox(self, pod_uid: PodUID) -> SandboxFacts | None: ...

    async def running(self, pod_uid: PodUID, name: str | None = None) -> ContainerID | None: ...

    async def container(self, container_id: ContainerID) -> ContainerFacts | None: ...


@dataclass(frozen=True, slots=True)
class Hold:
    """A running `hold`. Its descriptor belongs to who opened it."""

    pid: int
    pidfd: int

    def is_deleted(self) -> bool:
        """Tell whether it has been told that its pod is being deleted."""
        try:
            return Path(f"/proc/{self.pid}/comm").read_text().strip() == DELETED_NAME
        except (FileNotFoundError, ProcessLookupError):
            return True


class ShadowPods:
    """The shadow pods of this node."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._late: dict[PodUID, asyncio.Task[None]] = {}

    def close(self) -> None:
        for task in self._late.values():
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
            return not hold.is_deleted()

    async def lower_fence(self, uid: PodUID, mount_uid: MountUID) -> None:
        """Let `hold` end; if it does not run yet, stay behind and let it end when it does."""
        if uid in self._late or await self._lowered(uid, mount_uid):
            return
        task = asyncio.create_task(self._lower_late(uid, mount_uid))
        self._late[uid] = task
        task.add_done_callback(lambda _: self._late.pop(uid))

    async def _lower_late(self, uid: PodUID, mount_uid: MountUID) -> None:
        give_up = asyncio.get_running_loop().time() + LATE_S
        while asyncio.get_running_loop().time() < give_up:
            await asyncio.sleep(LATE_POLL_S)
            try:
                if await self._lowered(uid, mount_uid):
                    return
            except NodeUnavailable as error:
                log.warning(line("kept fence", shadow_uid=uid, error=error))

    async def _lowered(self, uid: PodUID, mount_uid: MountUID) -> bool:
        hold = await self._hold(uid, mount_uid)
        if hold is None:
            return False
        with _closed_after(hold):
            try:
                signal.pidfd_send_signal(hold.pidfd, signal.SIGUSR1)
            except ProcessLookupError:
                return True
        log.info(line("lowered fence", shadow_uid=uid, pid=hold.pid))
        return True

    async def _hold(self, uid: PodUID, mount_uid: MountUID) -> Hold | None:
        sandbox = await self._runtime.sandbox(uid)
        if sandbox is None or sandbox.labels.get(SHADOW_LABEL) != mount_uid:
            return None
        container_id = await self._runtime.running(uid, HOLD)
        facts = await self._runtime.container(container_id) if container_id else None
        if facts is None or not facts.is_running or facts.pid <= 0:
            return None
        return _opened(facts)


def _opened(facts: ContainerFacts) -> Hold | None:
    """Open the process that the runtime named, and only then see that it is the container's."""
    try:
        hold = Hold(facts.pid, os.pidfd_open(facts.pid))
    except ProcessLookupError:
        return None
    try:
        if owner_of(facts.pid) == (facts.pod_uid, facts.id):
            return hold
    except ProcessLookupError:
        pass
    os.close(hold.pidfd)
    return None


@contextmanager
def _closed_after(hold: Hold) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(hold.pidfd)
