# SPDX-License-Identifier: Apache-2.0
"""Hot-plug with the kernel's own uevents: a change is noticed without waiting for the rescan."""

import asyncio
import time
from pathlib import Path

import pytest

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
    inventory = Inventory(Resource.model_validate(resource), root=tmp_path)
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
    keeper = asyncio.create_task(hotplug.keep_inventories([inventory], on_rescan=lambda: None))
    try:
        (tmp_path / "dev" / "gadget0").unlink()
        assert await first_change(inventory, wake=wake) is Health.UNHEALTHY
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])
