# SPDX-License-Identifier: Apache-2.0
"""A container that is killed opens the same device again, moments after it runs, by the agent
alone.
"""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles

from cluster.world import Mount, Pod, World, eventually
from devicemount_testbed.vcs import NUMBERS
from vendors.inside import first_process

IMAGE = "localhost/scratch-target:1"
KILLS = 5
OPEN_AGAIN_MS = 200.0
PATHS = tuple(f"/dev/{name}" for name in NUMBERS)


def probing_pod(world: World, node: str) -> Pod:
    """Start a pod whose main process opens the paths each millisecond, and logs what changes."""
    container = {"name": "main", "image": IMAGE, "command": ["/target", "probe", "-", *PATHS]}
    return world.pod(f"killed-on-{node}", node=node, image=IMAGE, containers=[container])


def opened(pod: Pod) -> tuple[set[str], float] | None:
    """Return what has opened in the present run, and after how many ms since its first look."""
    log = pod.world.testbed.kubectl("logs", "-n", pod.world.namespace, pod.name)
    said = [line.split() for line in log.splitlines()]
    at_ns = [int(line[0]) for line in said if line[2] == "0"]
    if not at_ns:
        return None
    paths = {path for _, path, error in said if error == "0"}
    return paths, (at_ns[0] - int(said[0][0])) / 1e6


def kill(pod: Pod) -> str:
    """Kill the container's first process as an OOM killer would; return the former container."""
    before = str(pod.object()["status"]["containerStatuses"][0]["containerID"])
    os.kill(first_process(before), signal.SIGKILL)
    return before


def kill_many(pod: Pod, mount: Mount, kills: int) -> list[float]:
    """Kill it again and again; return after how many ms the device opened in each run."""
    took_ms = []
    device = mount.target["devices"]
    for count in range(1, kills + 1):
        before = kill(pod)

        def runs(before: str = before) -> bool:
            status = pod.object()["status"]["containerStatuses"][0]
            return status.get("containerID") != before and "running" in status["state"]

        eventually(runs, what=f"{pod.name} runs again")
        eventually(lambda: opened(pod) is not None, what="its device opens again")
        paths, after_ms = opened(pod) or (set(), 0.0)
        assert paths == {node["path"] for one in device for node in one["nodes"]}, count
        took_ms.append(after_ms)
    mount.ready()
    assert mount.target["devices"] == device
    return took_ms


def opens_again(world: World, *, kills: int) -> None:
    """Kill a container of each node so many times, on all nodes at once."""
    nodes = [node.name for node in world.testbed.nodes]
    pods = [probing_pod(world, node) for node in nodes]
    mounts = [world.mount(pod.name, pod).ready() for pod in pods]
    with ThreadPoolExecutor(len(pods)) as threads:
        took = list(threads.map(kill_many, pods, mounts, [kills] * len(pods)))
    for node, took_ms in zip(nodes, took, strict=True):
        p99_ms = quantiles(took_ms, n=100, method="inclusive")[98]
        sys.stdout.write(f"{node}: p99 {p99_ms:.0f} ms of {[round(one) for one in took_ms]}\n")
        assert p99_ms < OPEN_AGAIN_MS, (node, took_ms)


def test_killed_again_and_again_it_opens_the_same_device(world: World) -> None:
    opens_again(world, kills=KILLS)


def test_a_runtime_that_is_killed_takes_nothing_away(world: World) -> None:
    pod = world.pod("notebook", node="node1")
    mount = world.mount("stays", pod).ready()
    (shadow,), before, target = mount.shadow_pods(), pod.identity(), mount.target
    world.kill(pod.node, "containerd")
    eventually(lambda: pod.run("true").returncode == 0, what="another one answers")
    second = world.mount("second", pod).ready()
    assert pod.openable() == {
        path.rpartition("/")[2] for one in (mount, second) for path in one.files()
    }
    assert [one["metadata"]["uid"] for one in mount.shadow_pods()] == [shadow["metadata"]["uid"]]
    assert (pod.identity(), mount.target) == (before, target), "and nothing was granted anew"
