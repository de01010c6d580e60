# SPDX-License-Identifier: Apache-2.0
"""What the operator costs, and what is left of a mount when operators, API server or etcd are
away."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.failing import rolled_out
from cluster.world import DEADLINE_S, LEASE, SYSTEM, Pod, World, eventually
from devicemount_testbed.api import Object, pod_path
from devicemount_testbed.lifecycle import stopped

AWAY_S = float(os.environ.get("API_AWAY_S", "20"))
RECOVERY_S = 60.0
WATCHES_S = 180.0  # scheduler and kubelet each open a broken watch again after up to a minute
OPERATORS = f"{pod_path(SYSTEM)}?labelSelector=app.kubernetes.io/component%3Doperator"


@contextmanager
def written(world: World) -> Iterator[list[str]]:
    """Collect what the operator writes in this namespace during the block: "create pods"."""
    log = world.testbed.layout.audit_log
    start = log.stat().st_size
    writes: list[str] = []
    yield writes
    with log.open() as file:
        file.seek(start)
        for entry in map(json.loads, file):
            what = entry["objectRef"]
            if what.get("namespace") == world.namespace:
                path = (what["resource"], what.get("subresource"))
                writes.append(f"{entry['verb']} {'/'.join(filter(None, path))}")


def told(world: World, reason: str) -> bool:
    query = f"?fieldSelector=reason%3D{reason}"
    path = f"/api/v1/namespaces/{world.namespace}/events{query}"
    return bool(world.api.call("GET", path)["items"])


def test_a_mount_and_an_unmount_are_three_writes_each(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    with written(world) as mounting:
        mount = world.mount("gpu", pod).ready()
        eventually(lambda: told(world, "Mounted"), what="the Event")
    assert sorted(mounting) == ["create events", "create pods", "patch devicemounts/status"]
    with written(world) as unmounting:
        mount.delete()
        eventually(lambda: told(world, "Unmounted"), what="the Event")
    assert sorted(unmounting) == ["create events", "delete pods", "update devicemounts"]


def test_two_operators_of_which_one_works_hand_over_when_told_to_end(
    world: World, bystander: Pod
) -> None:
    pods = operators(world)
    first = world.leader()
    assert len(pods) == 2
    assert first in {pod["metadata"]["name"] for pod in pods}
    pod = world.pod("notebook")
    before = world.api.call("GET", LEASE)["spec"]["leaseTransitions"]
    world.api.delete(f"{pod_path(SYSTEM)}/{first}")
    asked = time.monotonic()
    mount = world.mount("gpu", pod).ready()
    took_s = time.monotonic() - asked
    assert world.leader() not in ("", first)
    assert world.api.call("GET", LEASE)["spec"]["leaseTransitions"] == before + 1
    assert took_s < 3 + 1, took_s  # the hand-over, and the mount
    mount.delete()


def test_operators_that_are_killed_in_turn_leave_nothing_undone(
    world: World, bystander: Pod
) -> None:
    pods = operators(world)
    target = world.pod("notebook")
    standing = world.mount("standing", target).ready()
    for number, pod in enumerate(sorted(pods, key=lambda p: p["metadata"]["name"])):
        mount = world.mount(f"gpu-{number}", target)
        standing.ask_delete()
        kill_process_of(world, pod)
        mount.ready(RECOVERY_S)
        standing.gone(RECOVERY_S)
        standing = mount
    standing.delete(RECOVERY_S)
    assert target.openable() == set()
    rolled_out(world)


@pytest.mark.parametrize(
    ("component", "away_s"), [("etcd", 0.0), ("kube-apiserver", AWAY_S)], ids=["etcd", "API server"]
)
def test_what_was_asked_before_it_went_away_is_done_when_it_is_back(
    world: World, bystander: Pod, component: str, away_s: float
) -> None:
    pod = world.pod("notebook")
    going = world.mount("going", pod).ready()
    coming = world.mount("coming", pod)
    going.ask_delete()
    with stopped(world.testbed.layout, component):
        time.sleep(away_s)  # that is how long it is away
    back = time.monotonic()
    going.gone(RECOVERY_S)
    eventually(lambda: len(coming.shadow_pods()) == 1, what="it is reserved", deadline_s=RECOVERY_S)
    assert time.monotonic() - back < RECOVERY_S
    coming.ready(WATCHES_S)
    assert len(coming.shadow_pods()) == 1
    coming.delete()
    assert pod.openable() == set()


def operators(world: World) -> list[Object]:
    """Return the operators' pods, once they are as many and as ready as they should be."""
    rolled_out(world)
    pods = world.api.call("GET", OPERATORS)["items"]
    running = [pod for pod in pods if pod["status"]["phase"] == "Running"]
    return [pod for pod in running if "deletionTimestamp" not in pod["metadata"]]


def kill_process_of(world: World, pod: Object) -> None:
    """Kill what a pod's container runs, from outside."""
    (status,) = pod["status"]["containerStatuses"]
    container = status["containerID"].rpartition("/")[2]
    script = f"kill -9 $(grep -ls {container} /proc/[0-9]*/cgroup | cut -d/ -f3)"
    done = world.testbed.exec(pod["spec"]["nodeName"], ["sh", "-c", script])
    assert done.returncode == 0, done.stderr
    path = f"{pod_path(SYSTEM)}/{pod['metadata']['name']}"

    def is_another(found: Object | None) -> bool:
        now = (found or {}).get("status", {}).get("containerStatuses") or [{}]
        return now[0].get("containerID") not in (None, status["containerID"])

    world.api.until(path, is_another, deadline_s=DEADLINE_S, what="started again")
