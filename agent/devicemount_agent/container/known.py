# SPDX-License-Identifier: Apache-2.0
"""The containers that the agent has to do with, held open, so that each is found once and its end
is heard.

A container's descriptors are closed only under its pod's lock: a thread may be working with them,
and a closed number may be another file's the next moment.
"""

import asyncio
from collections.abc import Callable, Collection

from devicemount_agent.container.find import Container, Runtime, find
from devicemount_agent.model import ContainerID, PodUID
from devicemount_agent.requests import Target


class KnownContainers:
    """Opens containers once and tells when one of them ends."""

    def __init__(self, runtime: Runtime, on_end: Callable[[Container], None]) -> None:
        self._runtime = runtime
        self._on_end = on_end
        self._open: dict[ContainerID, Container] = {}

    def close(self) -> None:
        """Close all. Nobody may be at work with one."""
        for pod_uid in {container.pod_uid for container in self._open.values()}:
            self.keep((), pod_uid=pod_uid)

    async def find(self, target: Target, *, pod_uid: PodUID, hint: ContainerID | None) -> Container:
        """Return the running target container. Raises as find.find does."""
        for known in self._open.values():
            is_it = (known.pod_uid, known.target) == (pod_uid, target)
            if is_it and not known.has_ended():
                return known
        return self._opened(await find(self._runtime, target, pod_uid=pod_uid, hint=hint))

    def running(self, container_id: ContainerID) -> Container | None:
        """Return a container that is open and has not ended."""
        known = self._open.get(container_id)
        return None if known is None or known.has_ended() else known

    def keep(self, used: Collection[ContainerID], *, pod_uid: PodUID) -> None:
        """Close a pod's containers that are not used any more. The caller holds the pod's lock."""
        for container in tuple(self._open.values()):
            if container.pod_uid == pod_uid and container.id not in used:
                del self._open[container.id]
                asyncio.get_running_loop().remove_reader(container.pidfd)
                container.close()

    def _opened(self, container: Container) -> Container:
        """Keep it, or the one that somebody else opened meanwhile."""
        known = self._open.setdefault(container.id, container)
        if known is not container:
            container.close()
            return known
        asyncio.get_running_loop().add_reader(container.pidfd, self._ended, container)
        return container

    def _ended(self, container: Container) -> None:
        asyncio.get_running_loop().remove_reader(container.pidfd)
        self._on_end(container)
