# SPDX-License-Identifier: Apache-2.0
"""A mount is edited while a program has its device open: the device never blinks, and what cannot
be had says so."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.test_holders import TARGET, Job, job_pod, start
from cluster.world import DEADLINE_S, VCS, Mount, Pod, World, eventually
from devicemount_testbed.api import MERGE_PATCH, Object, condition
from devicemount_testbed.vcs import NUMBERS

LOG = "/tmp/probed"
PATHS = tuple(f"/dev/{name}" for name in NUMBERS)
OPENS = "0"


def edit(mount: Mount, *, count: int) -> None:
    wish = {"spec": {"resources": {"limits": {VCS: count}}}}
    mount.world.api.call("PATCH", mount.path, wish, kind=MERGE_PATCH)


def settle(mount: Mount) -> None:
    """Wait until it is Ready as it is wanted now."""

    def is_settled(found: Object | None) -> bool:
        assert found is not None
        is_seen = found["status"]["observedGeneration"] == found["metadata"]["generation"]
        return is_seen and condition(found, "Ready").get("status") == "True"

    mount.world.api.until(mount.path, is_settled, deadline_s=DEADLINE_S, what="Ready as edited")


def probed(pod: Pod) -> dict[str, list[tuple[int, str]]]:
    """Return what opening each path answered from when on: (CLOCK_MONOTONIC in ns, errno)."""
    found: dict[str, list[tuple[int, str]]] = {path: [] for path in PATHS}
    for line in pod.sh(f"cat {LOG}").splitlines():
        at_ns, path, error = line.split()
        found[path].append((int(at_ns), error))
    return found


def openable(pod: Pod) -> set[str]:
    """Return what the prober could open when it last looked."""
    return {path for path, said in probed(pod).items() if said and said[-1][1] == OPENS}


@contextmanager
def working(pod: Pod, path: str) -> Iterator[list[Job]]:
    """Keep the device open by one process, and open all of them each millisecond by another."""
    jobs = [
        start(pod, f"{TARGET} hold {path}", says="holding"),
        start(pod, f"{TARGET} probe {LOG} {' '.join(PATHS)}", says=""),
    ]
    try:
        yield jobs
    finally:
        pod.sh("kill " + " ".join(str(job.pid) for job in jobs))


def test_one_three_one_while_the_first_is_open(world: World, node: str) -> None:
    pod = job_pod(world, "notebook", node)
    mount = world.mount("edited", pod, target={"container": "main"}).ready()
    before = mount.target
    (first,) = mount.files()
    with working(pod, first) as jobs:
        asked_ns = time.monotonic_ns()
        edit(mount, count=3)
        settle(mount)
        eventually(lambda: len(openable(pod)) == 3, what="three of them open")
        grown_ms = (max(said[-1][0] for said in probed(pod).values()) - asked_ns) / 1e6
        assert (mount.target["since"], len(mount.shadow_pods())) == (before["since"], 2)
        edit(mount, count=1)
        settle(mount)
        eventually(lambda: openable(pod) == {first}, what="the first alone opens")
        assert [error for _, error in probed(pod)[first]] == [OPENS], "it has blinked"
        assert (mount.target["devices"], len(mount.shadow_pods())) == (before["devices"], 1)
        assert all(job.is_alive(world) for job in jobs)
    sys.stdout.write(f"{node}: two more devices open {grown_ms:.0f} ms after the edit\n")


def test_a_count_that_no_shadow_pods_make_up_says_so_and_changes_nothing(world: World) -> None:
    pod = world.pod("notebook")
    mount = world.mount("whole", pod, count=3).ready()
    before = pod.openable(), mount.target["devices"], mount.target["shadowPods"]
    edit(mount, count=2)
    assert "one DeviceMount per device" in mount.not_ready("ShrinkNotPossible")
    assert (pod.openable(), mount.target["devices"], mount.target["shadowPods"]) == before
    edit(mount, count=3)
    settle(mount)
    assert (pod.openable(), mount.target["devices"], mount.target["shadowPods"]) == before
