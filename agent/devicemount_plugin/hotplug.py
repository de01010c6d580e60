# SPDX-License-Identifier: Apache-2.0
"""Notices devices that come and go: kernel uevents, and a slow rescan for what they miss.

The kernel sends uevents of devices into every network namespace that the initial user namespace
owns, a pod's too, to whoever listens: neither the host's network nor a capability is needed. A
node made by mknod, an attribute, a full receive buffer or a kernel that sends none: the rescan
finds out. No inotify: other pods can use up what the node has of it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Never

from pyroute2.netlink.uevent import MONITOR_GROUP_KERNEL, AsyncUeventSocket

from devicemount_plugin.inventory import Inventory

RESCAN_EVERY_S = 2.0  # reads of /dev and /sys that take milliseconds
RETRY_S = 10.0  # where the kernel gave no socket: it may have been short of something
SETTLE_S = 0.1  # one device sends several uevents; udev makes links after the kernel's

_log = logging.getLogger(__name__)


async def keep_inventories(
    inventories: Iterable[Inventory], *, on_rescan: Callable[[], None]
) -> None:
    """Rescan whenever a uevent arrives or the slow rescan is due, and call `on_rescan` after it.

    Each inventory has a task of its own: a driver that answers slowly delays its own resource only.
    """
    wakes = [(inventory, asyncio.Event()) for inventory in inventories]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_listen([woken for _, woken in wakes]))
        for inventory, woken in wakes:
            tasks.create_task(_keep(inventory, woken, on_rescan=on_rescan))


async def _keep(
    inventory: Inventory, woken: asyncio.Event, *, on_rescan: Callable[[], None]
) -> Never:
    while True:
        on_rescan()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESCAN_EVERY_S):
                await woken.wait()
            await asyncio.sleep(SETTLE_S)
        woken.clear()
        await inventory.refresh()


async def _listen(woken: Iterable[asyncio.Event]) -> Never:
    """Set the events for each uevent; where there are none, leave it to the slow rescan."""
    woken = tuple(woken)
    last_error = ""
    while True:
        try:
            await _hear(woken)
        except OSError as error:
            if str(error) != last_error:
                _log.warning("uevents failed, rescanning every %s s: %s", RESCAN_EVERY_S, error)
            last_error = str(error)
        await asyncio.sleep(RETRY_S)


async def _hear(woken: Iterable[asyncio.Event]) -> Never:
    """Set the events for each uevent, and for the message that pyroute2 makes of a loss."""
    socket = AsyncUeventSocket()  # type: ignore[no-untyped-call]
    try:
        await socket.bind(groups=MONITOR_GROUP_KERNEL)
        while True:
            async for _ in socket.get():  # type: ignore[no-untyped-call]
                for event in woken:
                    event.set()
    finally:
        socket.close()  # type: ignore[no-untyped-call]
