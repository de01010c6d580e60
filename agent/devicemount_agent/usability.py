# SPDX-License-Identifier: Apache-2.0
"""What keeps a target from using devices that it is granted: said, not acted upon.

The kubelet's word on a device is always there to be asked. What the container lacks (libraries, a
version that fits, files that its user may open) is looked up when it is granted, and again while
something is missing.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from devicemount_agent.allocation.read import Allocation
from devicemount_agent.container.known import KnownContainers
from devicemount_agent.device_health import DeviceHealth
from devicemount_agent.errors import DeviceMountError
from devicemount_agent.graft import graft, permission
from devicemount_agent.grafts import facts
from devicemount_agent.ledger import Grant
from devicemount_agent.logs import line
from devicemount_agent.model import Concern, PodUID

log = logging.getLogger(__name__)


class Usability:
    """Of all grants."""

    def __init__(
        self,
        allocation: Allocation,
        containers: KnownContainers,
        health: DeviceHealth,
        *,
        lock: Callable[[PodUID], asyncio.Lock],
    ) -> None:
        """`lock` is that of a target pod: a thread of ours works with its containers."""
        self.health = health
        self._lock = lock
        self._allocation = allocation
        self._containers = containers
        self._lacking: dict[PodUID, tuple[Concern, ...]] = {}

    def concerns(self, grant: Grant) -> tuple[Concern, ...]:
        """Return all that is wrong with a grant."""
        return (*self.health.concerns(grant), *self._lacking.get(grant.shadow.uid, ()))

    async def look(self, grants: Iterable[Grant]) -> None:
        """Look up what the containers lack. The caller holds the lock of their pod.

        What cannot be looked up is logged, and not said.
        """
        for grant in grants:
            container = self._containers.running(grant.container_id)
            if container is None:
                continue
            try:
                await asyncio.to_thread(container.follow, graft.supported)
                lacking = await self._allocation.concerns(container, grant.devices)
                refused = await asyncio.to_thread(permission.concerns, container, grant.present())
            except (DeviceMountError, OSError) as error:
                log.warning(line("could not see what is missing", **facts(grant), error=error))
                continue
            self._lacking[grant.shadow.uid] = (*lacking, *refused)

    async def look_again(self, grants: Iterable[Grant]) -> None:
        """Look again at those in which something was missing: it may have come.

        A pod that is being worked on is looked at another time.
        """
        for grant in grants:
            if self._lacking.get(grant.shadow.uid):
                lock = self._lock(grant.key.pod_uid)
                if not lock.locked():
                    async with lock:
                        await self.look((grant,))

    def forget(self, grant: Grant) -> None:
        self._lacking.pop(grant.shadow.uid, None)
