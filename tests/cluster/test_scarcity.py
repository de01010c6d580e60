# SPDX-License-Identifier: Apache-2.0
"""More devices asked than there are: said soon, nothing held, and Ready by itself."""

import time
from concurrent.futures import ThreadPoolExecutor

from cluster.world import LOOP, VCS, Mount, Pod, World, eventually
from devicemount_testbed.api import condition, is_ready

ROUNDS = 3


def test_too_few_free_waits_and_mounts_when_they_are_free(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    first = world.mount("first", pod, count=3).ready()
    second = world.mount("second", pod, count=2)
    message = second.not_ready("Insufficient", deadline_s=10)
    assert VCS in message
    assert len(pod.openable()) == 3
    first.delete()
    second.ready(deadline_s=60)
    assert len(pod.openable()) == 2


def test_more_than_the_node_has_says_so_and_is_deleted_at_once(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    mount = world.mount("greedy", pod, count=5)
    message = mount.not_ready("Insufficient", deadline_s=10)
    assert "5" in message
    assert "4" in message
    started = time.monotonic()
    mount.delete()
    assert time.monotonic() - started < 2
    assert world.shadow_pods() == []


def test_a_full_quota_is_named(world: World) -> None:
    quotas = f"/api/v1/namespaces/{world.namespace}/resourcequotas"
    world.api.call(
        "POST",
        quotas,
        {"metadata": {"name": "none"}, "spec": {"hard": {f"requests.{VCS}": "0"}}},
    )
    pod = world.pod("notebook")
    mount = world.mount("refused", pod)
    assert "none" in mount.not_ready("QuotaExceeded", deadline_s=10)
    world.api.delete(f"{quotas}/none")
    mount.ready(deadline_s=60)


def contend(world: World, *, rounds: int) -> None:
    """Let two objects want three of four devices each, again and again: one waits for the other,
    holding nothing."""
    pods = [world.pod(name) for name in ("left", "right")]
    for number in range(rounds):
        mounts = created_together(world, pods, number)
        first = await_one(mounts)
        (second,) = (mount for mount in mounts if mount is not first)
        second.not_ready("Insufficient")
        assert condition(second.object(), "Reserved")["status"] == "False"
        assert not any(pod["spec"].get("nodeName") for pod in second.shadow_pods())
        first.delete()
        second.ready(deadline_s=60)
        second.delete()


def created_together(world: World, pods: list[Pod], number: int) -> list[Mount]:
    def create(pod: Pod) -> Mount:
        return world.mount(f"{pod.name}-{number}", pod, resource=LOOP, count=3)

    with ThreadPoolExecutor(len(pods)) as threads:
        return list(threads.map(create, pods))


def await_one(mounts: list[Mount]) -> Mount:
    """Return the only one that is Ready, as soon as one is."""
    ready: list[Mount] = []

    def is_one_ready() -> bool:
        ready[:] = [mount for mount in mounts if is_ready(mount.object())]
        return bool(ready)

    eventually(is_one_ready, what="one of both is Ready")
    (only,) = ready
    return only


def test_two_that_want_three_of_four_never_wait_for_each_other(world: World) -> None:
    contend(world, rounds=ROUNDS)
