# SPDX-License-Identifier: Apache-2.0
"""Whatever ends a target or takes its reservation away, it is Ready again, and no device is ever
two containers': every one of them notes each millisecond what it can open, another pod waits for
what becomes free, and all notes are compared.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.probing import (
    Opened,
    Recorder,
    overlaps,
    post,
    priority_classes,
    prober,
    runs,
    started,
)
from cluster.test_restart import kill
from cluster.world import VCS, Mount, Pod, World, eventually
from devicemount_testbed.api import MERGE_PATCH, Object, condition, is_ready, pod_path
from devicemount_testbed.topology import node_named

NODE = "node1"  # whose kubelet may be restarted
CRASHES = 3
THRESHOLD = re.compile(r"^evictionHard:.*$", re.MULTILINE)
MORE_THAN_IT_HAS = 'evictionHard: {pid.available: "1000000000"}'


@pytest.fixture
def priorities(world: World) -> Iterator[dict[str, str]]:
    """A class below all others', so that its pods are evicted first, and one that only waits."""
    with priority_classes(world, lowly=(-10, "Never"), patient=(0, "Never")) as names:
        yield names


@contextmanager
def pressure(world: World) -> Iterator[None]:
    """Have the node's kubelet take its process ids for used up, until the end of the block."""
    path = world.testbed.layout.node(node_named(NODE)) / "kubelet.yaml"
    before, has = path.read_text(), _node(world)["status"]["allocatable"]
    changed, times = THRESHOLD.subn(MORE_THAN_IT_HAS, before)
    assert times == 1
    try:
        _restart_kubelet(world, path, changed)
        yield
    finally:
        _restart_kubelet(world, path, before)
        eventually(lambda: _is_well(world, has), what="the pressure is over", deadline_s=60)


def _restart_kubelet(world: World, path: Path, configuration: str) -> None:
    path.write_text(configuration)
    world.kill(NODE, "kubelet")


def _is_well(world: World, has: Object) -> bool:
    """Tell whether the node is as it was, with all its devices."""
    node = _node(world)
    conditions = {name: condition(node, name).get("status") for name in ("Ready", "PIDPressure")}
    is_as_before = node["status"]["allocatable"] == has
    return conditions == {"Ready": "True", "PIDPressure": "False"} and is_as_before


def _node(world: World) -> Object:
    return world.api.call("GET", f"/api/v1/nodes/{NODE}")


class Scene:
    """A StatefulSet's pod with a DeviceMount, and a rival that waits for the same device."""

    def __init__(self, world: World, priorities: dict[str, str]) -> None:
        self.world = world
        self.patient = priorities["patient"]
        self.rivals = 0
        self.rival = ""  # the last one's path
        labels = {"app": "web"}
        spec = {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": prober(NODE)},
        }
        body = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"}}
        sets = f"/apis/apps/v1/namespaces/{world.namespace}/statefulsets"
        world.api.call("POST", sets, {**body, "spec": spec})
        started(world, "web-0")
        self.pod = Pod(world, "web-0", NODE)
        reservation = {"priorityClassName": priorities["lowly"]}
        self.mount: Mount = world.mount("kept", self.pod, reservation=reservation).ready()
        rest = {VCS: world.free(NODE)}
        world.api.until(
            post(world, "filler", prober(NODE, limits=rest)), runs, deadline_s=60, what="running"
        )

    def outlives(self, step: Callable[[], None]) -> None:
        """Do something to it while a rival waits, who may be first; then it is Ready again."""
        self.rivals += 1
        waits = prober(NODE, limits={VCS: 1}, priorityClassName=self.patient)
        waits["terminationGracePeriodSeconds"] = 1  # without, a device is given on before it ends
        self.rival = post(self.world, f"rival-{self.rivals}", waits)
        step()
        eventually(lambda: self._has_rival() or self._is_back(), what="one has the device")
        self.world.api.delete(self.rival)
        eventually(self._is_back, what="Ready again", deadline_s=60)
        eventually(lambda: len(self.mount.shadow_pods()) == 1, what="nothing else is left of it")

    def shadow(self) -> str:
        (shadow,) = self.mount.shadow_pods()
        return pod_path(self.world.namespace, shadow["metadata"]["name"])

    # What is done to it

    def make_pod_anew(self) -> None:
        self._and_wait(lambda: self.world.api.delete(self.pod.path))

    def crash(self) -> None:
        for _ in range(CRASHES):
            before = kill(self.pod)
            eventually(lambda b=before: self._is_back(but=b), what="its device opens again")

    def delete_shadow(self) -> None:
        self._and_wait(lambda: self.world.api.delete(self.shadow()))

    def force_delete_shadow(self) -> None:
        self._and_wait(lambda: self.world.api.delete(self.shadow(), {"gracePeriodSeconds": 0}))

    def evict_shadow(self) -> None:
        """Until it is gone, and no longer: the kubelet evicts the next one then."""
        (shadow,) = self.mount.shadow_pods()
        with pressure(self.world):
            self._and_wait(lambda: None)
        path = f"/api/v1/namespaces/{self.world.namespace}/events?fieldSelector=reason%3DEvicted"
        evicted = [e["involvedObject"]["uid"] for e in self.world.api.call("GET", path)["items"]]
        assert shadow["metadata"]["uid"] in evicted

    def lend(self) -> None:
        """Suspend it until its rival has the device."""
        self._patch({"suspend": True})
        eventually(self._has_rival, what="the rival has the device")
        self._patch({"suspend": False})

    def _patch(self, spec: Object) -> None:
        self.world.api.call("PATCH", self.mount.path, {"spec": spec}, kind=MERGE_PATCH)

    def _has_rival(self) -> bool:
        return runs(self.world.api.get(self.rival))

    def _and_wait(self, act: Callable[[], object]) -> None:
        """Act, and wait until the device is not the mount's by the former shadow pod any more."""
        (before,) = self.mount.shadow_pods()
        act()
        uid = before["metadata"]["uid"]
        eventually(
            lambda: uid not in {s["metadata"]["uid"] for s in self.mount.shadow_pods()},
            what="the former reservation is gone",
            deadline_s=60,
        )

    def _is_back(self, *, but: str = "") -> bool:
        """Tell whether it is Ready of the container that runs now, in which its device opens."""
        pod, mount = self.world.api.get(self.pod.path), self.mount.object()
        if not runs(pod) or not is_ready(mount):
            return False
        assert pod is not None
        rows = mount["status"]["targets"]
        container = pod["status"]["containerStatuses"][0]["containerID"]
        is_said = [row.get("containerID") for row in rows] == [container.rpartition("/")[2]]
        nodes = [node for row in rows for device in row["devices"] for node in device["nodes"]]
        return container != but and is_said and self._opens() == {node["path"] for node in nodes}

    def _opens(self) -> set[str]:
        """Return what the container that runs now can open, as it says itself; nothing while its
        kubelet is away."""
        said = subprocess.run(
            self.world.testbed.kubectl_command("logs", "-n", self.world.namespace, self.pod.name),
            env=self.world.testbed.kubectl_environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode != 0:
            return set()
        last = {path: error for _, path, error in map(str.split, said.stdout.splitlines())}
        return {path for path, error in last.items() if error == "0"}


def test_it_is_ready_again_and_no_device_is_two_containers(
    world: World, priorities: dict[str, str]
) -> None:
    scene = Scene(world, priorities)
    with Recorder(world, NODE) as recorder:
        for step in (
            scene.make_pod_anew,
            scene.crash,
            scene.delete_shadow,
            scene.force_delete_shadow,
            scene.evict_shadow,
            scene.lend,
        ):
            scene.outlives(step)
    opened = recorder.opened()
    ours = {one.tenant for one in opened if " of web-0 " in one.tenant}
    rivals = {one.tenant for one in opened if f" of rival-{scene.rivals} " in one.tenant}
    assert len(ours) >= 2 + CRASHES, "each of its containers has opened a device"
    assert rivals, "and so has the rival to whom it was lent"
    assert all(_opened_one_at_a_time(opened, tenant) for tenant in ours)
    assert overlaps(opened) == []


def _opened_one_at_a_time(opened: list[Opened], tenant: str) -> bool:
    mine = [one for one in opened if one.tenant == tenant]
    return all(a.end_ns is not None and a.end_ns <= b.begin_ns for a, b in pairwise(mine))
