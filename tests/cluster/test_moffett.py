# SPDX-License-Identifier: Apache-2.0
"""MOFFETT's cards as their plugin's manual tells it, with the shipped plugin and stand-in cards."""

from collections.abc import Iterator

import pytest

from cluster.checkpoint import checkpoint
from cluster.moffett import CARDS, SPU, TOLERATION, Cards, served_cards
from cluster.world import Mount, Pod, World, eventually
from devicemount_testbed.api import Api, condition
from devicemount_testbed.cluster import Testbed

NOTICED_WITHIN_S = 10.0  # by the API's readers, from the change on the node


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


def degraded(mount: Mount) -> None:
    def is_degraded() -> bool:
        found = condition(mount.object(), "Degraded")
        return found.get("status") == "True" and found.get("reason") == "DeviceUnhealthy"

    eventually(is_degraded, what="Degraded", deadline_s=NOTICED_WITHIN_S)


def sound(mount: Mount) -> None:
    def is_sound() -> bool:
        found = condition(mount.object(), "Degraded")
        return found.get("status") != "True"

    eventually(is_sound, what="no longer Degraded", deadline_s=NOTICED_WITHIN_S)


def healthy_again(cards: Cards, card: int) -> None:
    eventually(
        lambda: cards.id(card) in cards.known(),
        what="the card is healthy under its id",
        deadline_s=NOTICED_WITHIN_S,
    )


def unhealthy(cards: Cards, card: int) -> None:
    eventually(
        lambda: cards.id(card) not in cards.known(),
        what="the card is unhealthy",
        deadline_s=NOTICED_WITHIN_S,
    )


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
    card, before = card_of(served, mount), pod.identity()
    assert served.openable(pod) == {card}
    try:
        served.remove_node(card)
        unhealthy(served, card)
        degraded(mount)

        served.add_node(card, minor=card + 100)
        healthy_again(served, card)
        eventually(
            lambda: served.openable(pod) == {card + 100},
            what="the new number is granted and the old one is not",
            deadline_s=NOTICED_WITHIN_S,
        )
        sound(mount)
        assert card_of(served, mount.ready()) == card
        assert pod.identity() == before
    finally:
        served.replace_node(card)


@pytest.mark.parametrize("served", ["node2"], indirect=True)
@pytest.mark.parametrize("how", ["driver", "attribute"])
def test_a_card_that_is_ill_and_recovers(world: World, served: Cards, how: str) -> None:
    pod = target(world, served.node)
    mount = world.mount("one", pod, resource=SPU).ready()
    card, before = card_of(served, mount), pod.identity()
    with served.without_driver(card) if how == "driver" else served.with_state(card, "lost"):
        unhealthy(served, card)
        degraded(mount)
    healthy_again(served, card)
    sound(mount)
    assert served.openable(pod) == {card}
    assert pod.identity() == before


@pytest.mark.parametrize("served", ["node1"], indirect=True)
def test_a_mount_says_that_the_cards_have_no_nodes(world: World, served: Cards) -> None:
    pod = target(world, served.node)
    for index in range(CARDS):
        served.remove_node(index)
    try:
        eventually(lambda: not served.allocatable(), what="the node offers none")
        mount = world.mount("one", pod, resource=SPU)
        message = mount.not_ready("DriverMissing")
        assert f"PCI device {served.id(0)} (1f36:7030) has no device node in /dev" in message
    finally:
        for index in range(CARDS):
            served.replace_node(index)
    mount.ready(deadline_s=60).delete()


@pytest.mark.parametrize("served", ["node1"], indirect=True)
def test_a_restarted_kubelet_loses_nothing(world: World, served: Cards) -> None:
    pod = target(world, served.node)
    mount = world.mount("one", pod, resource=SPU).ready()
    card, before = card_of(served, mount), pod.identity()
    written = checkpoint(world.testbed, served.node)
    at = written.stat().st_mtime_ns
    world.kill(served.node, "kubelet")
    # Its first write after the start has the devices of those that have registered since.
    eventually(
        lambda: written.stat().st_mtime_ns > at and len(served.known()) == CARDS,
        what="all cards are registered again",
    )
    # Not through the scheduler, which hears of the devices with the next report of the node.
    other = world.pod("other", node=served.node, limits={SPU: 1}, nodeName=served.node)
    assert len(served.openable(other) - {card}) == 1
    assert card not in served.openable(other)
    assert served.openable(pod) == {card}
    assert pod.identity() == before
    mount.ready().delete()
