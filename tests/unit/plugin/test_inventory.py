# SPDX-License-Identifier: Apache-2.0
"""What the kubelet is told: each device once seen, its health, and only changes."""

import asyncio

import pytest

from devicemount_plugin.config import DeviceID, Nodes, Resource
from devicemount_plugin.health import Health
from devicemount_plugin.inventory import Inventory

from .conftest import Node


@pytest.fixture
def inventory(node: Node) -> Inventory:
    node.plug("gadget0", "gadget1")
    resource = Resource(name="example.com/gadget", nodes=Nodes(glob="/dev/gadget*"))
    return Inventory(resource, root=node.root)


def test_what_is_present_at_the_start_is_healthy(inventory: Inventory) -> None:
    assert inventory.listing == {"gadget0": Health.HEALTHY, "gadget1": Health.HEALTHY}


def test_a_device_that_goes_is_unhealthy_and_comes_back_under_its_id(
    inventory: Inventory, node: Node
) -> None:
    node.unplug("gadget1")
    assert inventory.rescan() == {"gadget0": Health.HEALTHY, "gadget1": Health.UNHEALTHY}
    node.plug("gadget1")
    assert inventory.rescan() == {"gadget0": Health.HEALTHY, "gadget1": Health.HEALTHY}


def test_a_device_that_comes_later_is_added(inventory: Inventory, node: Node) -> None:
    node.plug("gadget7")
    assert set(inventory.rescan()) == {"gadget0", "gadget1", "gadget7"}


def test_an_absent_device_cannot_be_found_even_before_the_next_scan(
    inventory: Inventory, node: Node
) -> None:
    node.unplug("gadget1")
    assert inventory.find(DeviceID("gadget1")) is None
    assert inventory.find(DeviceID("gadget0")) is not None
    assert inventory.find(DeviceID("unknown")) is None


async def test_listings_come_once_and_then_on_change_only(inventory: Inventory, node: Node) -> None:
    listings = inventory.listings()
    assert await anext(listings) == {"gadget0": Health.HEALTHY, "gadget1": Health.HEALTHY}
    following = asyncio.ensure_future(anext(listings))
    inventory.rescan()
    await asyncio.sleep(0)
    assert not following.done()
    node.unplug("gadget0")
    inventory.rescan()
    assert await following == {"gadget0": Health.UNHEALTHY, "gadget1": Health.HEALTHY}


async def test_a_change_between_two_listings_is_not_lost(inventory: Inventory, node: Node) -> None:
    listings = inventory.listings()
    await anext(listings)
    node.unplug("gadget0")
    inventory.rescan()
    node.unplug("gadget1")
    inventory.rescan()
    latest = await asyncio.wait_for(anext(listings), 1)
    assert latest == {"gadget0": Health.UNHEALTHY, "gadget1": Health.UNHEALTHY}
