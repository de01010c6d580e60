# SPDX-License-Identifier: Apache-2.0
"""Follows a device whose file on the node goes, and comes back under another number.

What is gone, or another's, is withheld at once: the kernel may give its number to another device.
The grant stays, since the kubelet still has the device reserved. When all of its files are back and
the kubelet calls it healthy, it is granted by what they are now, as a container started anew would
get it: the same sequence with intent, verification, List and commit.

A process that still has the vanished device open holds it as long as its file is not back: it may
be only the file that has gone. Once it is back under another number, such a descriptor leads
nowhere, and the old number may be others': it is not looked for any more.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping

from devicemount_agent.container.known import KnownContainers
from devicemount_agent.device_health import DeviceHealth
from devicemount_agent.errors import DeviceMountError
from devicemount_agent.grafts import Grafts, facts
from devicemount_agent.ledger import Grant, Stage, renumbered
from devicemount_agent.logs import line
from devicemount_agent.model import DeviceNumber, Health, PodUID
from devicemount_agent.timeline import Timeline

RETRY_S = 10.0  # after what is back could not be granted: something else stands at its place

Confirm = Callable[[Grant], Awaitable[None]]

log = logging.getLogger(__name__)


class Renewal:
    """Of all grants."""

    def __init__(
        self,
        grafts: Grafts,
        containers: KnownContainers,
        health: DeviceHealth,
        *,
        confirm: Confirm,
    ) -> None:
        """`confirm` raises ReservationLost unless the devices are the shadow pod's still."""
        self._grafts = grafts
        self._containers = containers
        self._health = health
        self._confirm = confirm
        self._under_way: dict[PodUID, asyncio.Task[None]] = {}
        self._not_before_s: dict[PodUID, float] = {}  # by the loop's clock

    async def finish(self) -> None:
        """Wait for what has begun."""
        if self._under_way:
            await asyncio.wait(self._under_way.values())

    async def follow(self, suspects: Collection[Grant]) -> None:
        """Compare the node's device files with these grants; what it begins comes to its end.

        Each in a task of its own: a pod that is worked on elsewhere must not delay others.
        """
        known = self._grafts.ledger.grants
        self._not_before_s = {uid: at for uid, at in self._not_before_s.items() if uid in known}
        if not suspects:
            return
        numbers = await self._grafts.on_node(suspects)
        for grant in suspects:
            uid = grant.shadow.uid
            if (grant.withheld or _gone(grant, numbers[uid])) and uid not in self._under_way:
                self._under_way[uid] = asyncio.create_task(self._follow(grant))

    async def _follow(self, grant: Grant) -> None:
        try:
            await self._settle(grant.shadow.uid)
        except (DeviceMountError, OSError) as error:
            log.error(line("could not withhold", **facts(grant), error=error))
        finally:
            del self._under_way[grant.shadow.uid]

    async def _settle(self, uid: PodUID) -> None:
        grant = self._grafts.ledger.grants.get(uid)
        if grant is None:
            return
        async with self._grafts.lock(grant.key.pod_uid):
            grant = self._grafts.ledger.grants.get(uid)
            if grant is None or grant.stage is not Stage.COMMITTED or uid not in self._grafts.live:
                return
            now = (await self._grafts.on_node((grant,)))[uid]  # whatever it was before the lock
            if gone := _gone(grant, now):
                grant = await self._grafts.withhold(grant, grant.withheld | gone)
            back = {path: number for path in grant.withheld if (number := now.get(path))}
            is_well = all(self._health.of(d) is Health.HEALTHY for d in grant.devices)
            is_due = asyncio.get_running_loop().time() >= self._not_before_s.get(uid, 0.0)
            if grant.withheld == back.keys() and is_well and is_due:
                await self._grant_again(grant, renumbered(grant, back))

    async def _grant_again(self, held: Grant, renewed: Grant) -> None:
        """Grant what is back; after an error it stays withheld."""
        container = self._containers.running(held.container_id)
        if container is None:
            return
        timeline = Timeline()
        try:
            intent = await self._grafts.intend(renewed, container)
            brought = await self._grafts.bring_in(intent, container, timeline)
            await self._confirm(brought)
            self._grafts.commit(brought, timeline)
            self._not_before_s.pop(held.shadow.uid, None)
        except (DeviceMountError, OSError) as error:
            log.warning(line("not granted again", **facts(held), error=error))
            self._not_before_s[held.shadow.uid] = asyncio.get_running_loop().time() + RETRY_S
            await self._grafts.withhold(held, held.withheld)


def _gone(grant: Grant, now: Mapping[str, DeviceNumber | None]) -> frozenset[str]:
    """Return the paths of device files that the node does not have under their number."""
    return frozenset(
        node.path
        for device in grant.devices
        for node in device.nodes
        if now.get(node.path, node.number) != node.number and node.path not in grant.withheld
    )
