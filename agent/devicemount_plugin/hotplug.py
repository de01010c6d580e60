# SPDX-License-Identifier: Apache-2.0
"""Notices devices that come and go: kernel uevents, and a slow rescan for what they miss.

The kernel sends uevents of devices into every network namespace that the initial user namespace
owns, a pod's too, to whoever listens: neither the host's network nor a capability is needed. A
node made by mknod, a full receive buffer or a kernel that sends none: the rescan finds out.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from pyroute2.netlink.uevent import MONITOR_GROUP_KERNEL, AsyncUeventSocket

from devicemount_plugin.health import Health
from devicemount_plugin.inventory import Inventory

RESCAN_EVERY_S = 5.0  # a few stat calls for each device
SETTLE_S = 0.1  # one device sends several uevents; udev makes links after the kernel's

_log = logging.getLogger(__name__)


async def keep_inventories(inventories: Iterable[Inventory]) -> None:
    """Rescan whenever a uevent arrives or the slow rescan is due; never returns."""
    inventories = tuple(inventories)
    woken = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_listen(woken))
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESCAN_EVERY_S):
                    await woken.wait()
                await asyncio.sleep(SETTLE_S)
            woken.clear()
            for inventory in inventories:
                _rescan(inventory)


async def _listen(woken: asyncio.Event) -> None:
    """Set `woken` for each uevent; return, leaving the slow rescan, where there are none."""
    socket = AsyncUeventSocket()  # type: ignore[no-untyped-call]
    try:
        await socket.bind(groups=MONITOR_GROUP_KERNEL)
        while True:
            async for _ in socket.get():  # type: ignore[no-untyped-call]
                woken.set()
    except OSError as error:
        _log.warning("uevents failed, rescanning every %s s: %s", RESCAN_EVERY_S, error)
    finally:
        socket.close()  # type: ignore[no-untyped-call]


def _rescan(inventory: Inventory) -> None:
    before = inventory.listing
    for device_id, health in inventory.rescan().items():
        if before.get(device_id) is health:
            continue
        level = logging.INFO if health is Health.HEALTHY else logging.WARNING
        _log.log(
            level,
            "device changed resource=%s device=%s health=%s",
            inventory.resource_name,
            device_id,
            health.value,
        )
