# SPDX-License-Identifier: Apache-2.0
"""A node that nobody can reach, for so long that the cluster gives it up, and that comes back."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.world import World, eventually
from devicemount_testbed.api import Object, condition
from devicemount_testbed.network import set_link
from devicemount_testbed.topology import node_named

NODE = "node2"
GIVEN_UP_S = 120.0  # the controller waits 50 s
BACK_S = 120.0


@contextmanager
def unreachable(node: str) -> Iterator[None]:
    """Take the node's cable out, until the end of the block. It runs on."""
    set_link(node_named(node), "down")
    try:
        yield
    finally:
        set_link(node_named(node), "up")


@pytest.fixture
def _reachable_again(world: World) -> Iterator[None]:
    yield
    eventually(lambda: ready(world) == "True", what=f"{NODE} is back", deadline_s=BACK_S)


def ready(world: World) -> str:
    node: Object = world.api.call("GET", f"/api/v1/nodes/{NODE}")
    return str(condition(node, "Ready").get("status"))


@pytest.mark.usefixtures("_reachable_again")
def test_nothing_is_released_on_time_alone_and_all_is_as_before_when_it_is_back(
    world: World,
) -> None:
    pod = world.pod("notebook", node=NODE)
    kept, ending = world.mount("kept", pod).ready(), world.mount("ending", pod).ready()
    before, devices, container = kept.shadow_pods(), kept.target["devices"], pod.identity()
    free = world.free(NODE)
    with unreachable(NODE):
        kept.not_ready("AgentUnavailable", deadline_s=60)
        ending.ask_delete()
        eventually(lambda: ready(world) == "Unknown", what="given up", deadline_s=GIVEN_UP_S)
        assert ending.not_ready("AgentUnavailable")
        assert len(ending.shadow_pods()) == 1
        assert world.free(NODE) == free, "nothing was given back"
    ending.gone(BACK_S)
    kept.ready(BACK_S)
    assert [s["metadata"]["uid"] for s in kept.shadow_pods()] == [
        s["metadata"]["uid"] for s in before
    ]
    assert kept.target["devices"] == devices
    assert pod.identity() == container
    assert pod.openable() == {path.rpartition("/")[2] for path in kept.files()}
