# SPDX-License-Identifier: Apache-2.0
"""More devices asked than there are: said soon, nothing held, and Ready by itself."""

import time

from cluster.world import VCS, World


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
