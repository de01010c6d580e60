# SPDX-License-Identifier: Apache-2.0
"""MOFFETT's cards as their plugin's manual tells it, with the shipped plugin and stand-in cards."""

import time
from collections.abc import Iterator

import pytest

from cluster.checkpoint import checkpoint
from cluster.moffett import CARDS, SPU, TOLERATION, Cards, served_cards
from cluster.plugins import identity, is_replaced, roll_out_anew
from cluster.world import Mount, Pod, World, eventually
from devicemount_testbed.api import Api, condition
from devicemount_testbed.cluster import Testbed

NOTICED_WITHIN_S = 10.0  # by the API's readers, from the change on the node
REGISTERED_WITHIN_S = 2.0
WRITTEN_WITHIN_S = 0.5  # more: the kubelet asks back for the list, and writes it to be seen here


@pytest.fixture(params=["node1", "node2"], scope="module")
def served(request: pytest.FixtureRequest, testbed: Testbed, api: Api) -> Iterator[Cards]:
    """Serve four cards; that all are allocatable soon after the start is the first promise."""
    with served_cards(testbed, api, node=str(request.param)) as cards:
        eventually(
            lambda: cards.allocatable() == CARDS,
            what="all cards are allocatable",
            deadline_s=NOTICED_WITHIN_S,
        )
        yield cards


def target(world: World, node: str, *, spus: int = 0) -> Pod:
    """Start the manual's pod, without its privilege."""
    limits = {SPU: spus} if spus else {}
    return world.pod(
        "spu-pod", node=node, limits=limits, tolerations=[TOLERATION], restartPolicy="Never"
    )


def card_of(cards: Cards, mount: Mount) -> int:
    (device,) = mount.target["devices"]
    return cards.index(device["id"])


def is_degraded(mount: Mount) -> bool:
    found = condition(mount.object(), "Degraded")
    return found.get("status") == "True" and found.get("reason") == "DeviceUnhealthy"


def ill(cards: Cards, card: int, mount: Mount) -> None:
    """Wait until both say it; the change on the node was made just before."""
    eventually(
        lambda: cards.id(card) not in cards.known() and is_degraded(mount),
        what="the card is unhealthy and the mount Degraded",
        deadline_s=NOTICED_WITHIN_S,
    )


def well(cards: Cards, card: int, mount: Mount, *, number: int) -> None:
    """Wait until the card is healthy under its id, and nothing but the number is granted."""
    (pod,) = mount.world.pods.values()
    eventually(
        lambda: (
            cards.id(card) in cards.known()
            and not is_degraded(mount)
            and cards.openable(pod) == {number}
        ),
        what=f"the card is healthy under its id and granted as number {number}",
        deadline_s=NOTICED_WITHIN_S,
    )


def takes_one(world: World, cards: Cards) -> Pod:
    """Start a pod with one card, not by the scheduler: a node's next report comes later."""
    limits, where = {SPU: 1}, cards.node
    return world.pod("other", node=where, limits=limits, nodeName=where, tolerations=[TOLERATION])


def test_the_kubelet_knows_the_cards_by_their_addresses(served: Cards) -> None:
    assert served.known() == {served.id(index) for index in range(CARDS)}


def test_two_cards_from_the_start_one_by_a_mount_one_left(world: World, served: Cards) -> None:
    free = world.free(served.node, SPU)
    pod = target(world, served.node, spus=2)
    own = served.openable(pod)
    assert len(own) == 2
    before = pod.identity()

    mount = world.mount("third", pod, resource=SPU).ready()

    added = card_of(served, mount)
    assert served.openable(pod) == own | {added}
    assert mount.files() == [served.path(added)]
    assert pod.exists(served.path(added))
    assert world.free(served.node, SPU) == free - 3 == 1

    mount.delete()

    assert served.openable(pod) == own
    assert pod.identity() == before
    assert world.free(served.node, SPU) == 2


def test_a_card_that_loses_its_node_and_gets_another(world: World, served: Cards) -> None:
    pod = target(world, served.node)
    mount = world.mount("one", pod, resource=SPU).ready()
    card, before, plugin = card_of(served, mount), pod.identity(), identity(served.api)
    assert served.openable(pod) == {card}
    try:
        served.remove_node(card)
        ill(served, card, mount)

        served.add_node(card, minor=card + 100)
        well(served, card, mount, number=card + 100)
        assert card_of(served, mount.ready()) == card
        assert pod.identity() == before
        assert identity(served.api) == plugin
    finally:
        served.replace_node(card)


@pytest.mark.parametrize("served", ["node2"], indirect=True)
@pytest.mark.parametrize("how", ["driver", "attribute"])
def test_a_card_that_is_ill_and_recovers(world: World, served: Cards, how: str) -> None:
    pod = target(world, served.node)
    mount = world.mount("one", pod, resource=SPU).ready()
    card, before, plugin = card_of(served, mount), pod.identity(), identity(served.api)
    with served.without_driver(card) if how == "driver" else served.with_state(card, "lost"):
        ill(served, card, mount)
    well(served, card, mount, number=card)
    assert pod.identity() == before
    assert identity(served.api) == plugin


@pytest.mark.parametrize("served", ["node2"], indirect=True)
def test_a_removed_socket_is_made_anew(served: Cards) -> None:
    plugin, before = identity(served.api), served.sockets()
    written = checkpoint(served.testbed, served.node)
    (socket,) = before
    socket.unlink()
    at = written.stat().st_mtime_ns
    eventually(
        lambda: (
            not served.sockets() <= before
            and written.stat().st_mtime_ns > at
            and len(served.known()) == CARDS
        ),
        what="all cards are registered again",
        deadline_s=REGISTERED_WITHIN_S + WRITTEN_WITHIN_S,
    )
    assert identity(served.api) == plugin


@pytest.mark.parametrize("served", ["node2"], indirect=True)
def test_a_rolling_update_of_the_plugin_loses_nothing(world: World, served: Cards) -> None:
    pod = target(world, served.node, spus=2)
    mount = world.mount("third", pod, resource=SPU).ready()
    given, before, plugin = served.openable(pod), pod.identity(), identity(served.api)
    (left,) = set(range(CARDS)) - given
    ready = condition(mount.object(), "Ready")
    roll_out_anew(served.testbed)

    def is_registered_again() -> bool:
        assert served.openable(pod) == given
        return is_replaced(served.api, plugin)

    eventually(is_registered_again, what="another plugin is registered", deadline_s=60)
    assert served.known() == {served.id(index) for index in range(CARDS)}
    assert served.openable(takes_one(world, served)) == {left}
    assert served.openable(pod) == given
    assert pod.identity() == before
    assert condition(mount.object(), "Ready") == ready, "Ready all the time"
    eventually(lambda: not is_degraded(mount), what="not Degraded, or no longer")
    mount.delete()


@pytest.mark.parametrize("served", ["node1"], indirect=True)
def test_a_mount_says_that_the_cards_have_no_nodes(world: World, served: Cards) -> None:
    """So it does where they had none when the plugin started."""
    pod, plugin = target(world, served.node), identity(served.api)
    missing = f"PCI device {served.id(0)} (1f36:7030) has no device node in /dev"
    for index in range(CARDS):
        served.remove_node(index)
    try:
        eventually(lambda: served.shown() == "0", what="the node offers none")
        first = world.mount("one", pod, resource=SPU)
        assert missing in first.not_ready("DriverMissing")

        roll_out_anew(served.testbed)
        eventually(lambda: is_replaced(served.api, plugin), what="another plugin", deadline_s=60)
        second = world.mount("two", pod, resource=SPU)
        assert missing in second.not_ready("DriverMissing")
        assert served.known() == set()
        assert served.shown() == "0"
    finally:
        for index in range(CARDS):
            served.replace_node(index)
    for mount in (first, second):
        mount.ready(deadline_s=60).delete()


@pytest.mark.parametrize("served", ["node1"], indirect=True)
def test_a_restarted_kubelet_loses_nothing(world: World, served: Cards) -> None:
    pod = target(world, served.node)
    mount = world.mount("one", pod, resource=SPU).ready()
    card, before, plugin = card_of(served, mount), pod.identity(), identity(served.api)
    written = checkpoint(world.testbed, served.node)
    at = written.stat().st_mtime_ns
    world.kill(served.node, "kubelet")
    # Its first write after the start has the devices of those that have registered since.
    eventually(
        lambda: written.stat().st_mtime_ns > at and len(served.known()) == CARDS,
        what="all cards are registered again",
    )
    took_s = time.time() - written.with_name("kubelet.sock").stat().st_ctime
    assert took_s < REGISTERED_WITHIN_S + WRITTEN_WITHIN_S
    other = takes_one(world, served)
    assert len(served.openable(other) - {card}) == 1
    assert card not in served.openable(other)
    assert served.openable(pod) == {card}
    assert pod.identity() == before
    assert identity(served.api) == plugin
    mount.ready().delete()
