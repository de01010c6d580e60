# SPDX-License-Identifier: Apache-2.0
"""Hot-plug with the kernel's own uevents: a change is noticed without waiting for the rescan."""

import asyncio
import errno
import time
from pathlib import Path

import pytest
from pyroute2.netlink.uevent import AsyncUeventSocket

from devicemount_plugin import hotplug
from devicemount_plugin.config import Resource
from devicemount_plugin.health import Health
from devicemount_plugin.inventory import Inventory
from unit.plugin.node_tree import NodeTree

NEVER_S = 3600.0
DEADLINE_S = 5.0
UEVENT = Path("/sys/class/block/loop0/uevent")  # writing "change" tells listeners, no more


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    NodeTree(tmp_path).plug("/dev/gadget0")
    resource = {"name": "example.com/gadget", "nodes": {"glob": "/dev/gadget*"}}
    inventory = Inventory(Resource.model_validate(resource), root=tmp_path, reports=tmp_path)
    inventory.rescan()
    return inventory


async def first_change(inventory: Inventory, *, wake: bool) -> Health:
    """Return gadget0's health in the next listing, with a uevent now and then if `wake`."""
    listings = inventory.listings()
    await anext(listings)
    following = asyncio.ensure_future(anext(listings))
    deadline = time.monotonic() + DEADLINE_S
    while not following.done() and time.monotonic() < deadline:
        if wake:
            UEVENT.write_text("change")
        await asyncio.wait([following], timeout=0.3)
    following.cancel()
    return (await following)[next(iter(inventory.listing))]


async def health_after_loss(inventory: Inventory, node: Path, *, wake: bool) -> Health:
    keeper = asyncio.create_task(hotplug.keep_inventories([inventory], on_rescan=lambda: None))
    try:
        (node / "dev" / "gadget0").unlink()
        return await first_change(inventory, wake=wake)
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])


@pytest.mark.parametrize(
    ("rescan_every_s", "wake"),
    [
        pytest.param(NEVER_S, True, id="by a uevent"),
        pytest.param(0.1, False, id="by the slow rescan"),
    ],
)
async def test_a_device_that_goes_is_noticed(
    *,
    inventory: Inventory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rescan_every_s: float,
    wake: bool,
) -> None:
    monkeypatch.setattr(hotplug, "RESCAN_EVERY_S", rescan_every_s)
    assert await health_after_loss(inventory, tmp_path, wake=wake) is Health.UNHEALTHY


async def test_a_kernel_that_gives_no_socket_is_asked_again(
    inventory: Inventory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = [OSError(errno.ENOBUFS, "No buffer space available")]

    class Short(AsyncUeventSocket):  # type: ignore[misc]
        async def bind(self, groups: int = -1) -> None:
            if failures:
                raise failures.pop()
            await super().bind(groups=groups)

    monkeypatch.setattr(hotplug, "AsyncUeventSocket", Short)
    monkeypatch.setattr(hotplug, "RESCAN_EVERY_S", NEVER_S)
    monkeypatch.setattr(hotplug, "RETRY_S", 0.1)
    assert await health_after_loss(inventory, tmp_path, wake=True) is Health.UNHEALTHY
    assert [one for one in caplog.messages if "uevents" in one] == [
        "uevents failed, rescanning every 3600.0 s: [Errno 105] No buffer space available"
    ]
