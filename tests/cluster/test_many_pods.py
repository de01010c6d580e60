# SPDX-License-Identifier: Apache-2.0
"""One DeviceMount for all pods of a controller: as they come and go, and are made again."""

from collections.abc import Iterator

import pytest

from cluster.world import Mount, World, eventually
from devicemount_testbed.api import MERGE_PATCH, Object, condition, pod_path
from devicemount_testbed.topology import NODES

LABELS = {"app": "web"}
LATER_S = 90.0


class Controller:
    """A Deployment or StatefulSet whose pods are the targets, a few on each node."""

    def __init__(self, world: World, kind: str, *, replicas: int) -> None:
        self.world = world
        self.path = f"/apis/apps/v1/namespaces/{world.namespace}/{kind.lower()}s"
        spread: Object = {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": LABELS},
        }
        pod: Object = {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "topologySpreadConstraints": [spread],
            "containers": [{"name": "main", "image": "localhost/busybox:1"}],
        }
        self._spec: Object = {
            "replicas": replicas,
            "selector": {"matchLabels": LABELS},
            "template": {"metadata": {"labels": LABELS}, "spec": pod},
        }
        if kind == "Deployment":
            self._spec["strategy"] = {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 3}}
        body = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web"}}
        world.api.call("POST", self.path, {**body, "spec": self._spec})

    def scale(self, replicas: int) -> None:
        self._patch({"replicas": replicas})

    def roll(self) -> set[str]:
        """Have every pod replaced; return the UIDs of those that stand now."""
        before = self.pods().keys()
        annotations = {"metadata": {"annotations": {"version": "2"}}}
        self._patch({"template": annotations})
        return set(before)

    def pods(self) -> dict[str, str]:
        """Return names by UID of the pods that are to stay."""
        path = f"{pod_path(self.world.namespace)}?labelSelector=app%3Dweb"
        found = self.world.api.call("GET", path)["items"]
        return {
            pod["metadata"]["uid"]: pod["metadata"]["name"]
            for pod in found
            if "deletionTimestamp" not in pod["metadata"]
        }

    def _patch(self, spec: Object) -> None:
        self.world.api.call("PATCH", f"{self.path}/web", {"spec": spec}, kind=MERGE_PATCH)


@pytest.fixture
def _free_again(world: World) -> Iterator[None]:
    """Demand that as much is free in the end as before."""
    before = {node.name: world.free(node.name) for node in NODES}
    yield
    eventually(
        lambda: all(world.free(name) >= count for name, count in before.items()),
        what="every device is free again",
    )


def settled(mount: Mount, controller: Controller, *, replicas: int, but: set[str]) -> Object:
    """Wait until exactly the controller's pods have devices; at every step status adds up."""
    found: Object = {}

    def so() -> bool:
        found.update(mount.object()["status"])
        ready, _, wanted = (found.get("ready") or "0/0").partition("/")
        rows = {row["podUID"] for row in found.get("targets") or () if row["reason"] == "Mounted"}
        assert int(ready) <= int(wanted)
        assert int(ready) <= len(rows)
        is_ready = condition({"status": found}, "Ready").get("status") == "True"
        assert is_ready == (ready == wanted and int(wanted) > 0) or not found.get("ready")
        pods = controller.pods().keys()
        all_rows = {row["podUID"] for row in found.get("targets") or ()}
        return is_ready and rows == all_rows == pods and len(rows) == replicas and not rows & but

    eventually(so, what=f"{replicas} of {replicas} pods are ready", deadline_s=LATER_S)
    assert found["ready"] == f"{replicas}/{replicas}"
    return found


@pytest.mark.usefixtures("_free_again")
def test_a_deployment_is_scaled_and_rolled(world: World) -> None:
    deployment = Controller(world, "Deployment", replicas=5)
    mount = world.mount("web", "", target={"podName": None, "selector": {"matchLabels": LABELS}})
    status = settled(mount, deployment, replicas=5, but=set())
    devices = [(r["nodeName"], r["devices"][0]["id"]) for r in status["targets"]]
    assert len(set(devices)) == 5
    for row in status["targets"]:
        path = row["devices"][0]["nodes"][0]["path"]
        command = ("exec", "-n", world.namespace, row["podName"], "--", "sh", "-c", f": < {path}")
        world.testbed.kubectl(*command)
    for replicas in (2, 6):
        deployment.scale(replicas)
        settled(mount, deployment, replicas=replicas, but=set())
        assert len(world.shadow_pods()) == replicas
    former = deployment.roll()
    settled(mount, deployment, replicas=6, but=former)
    mount.delete()
    assert world.shadow_pods() == []


@pytest.mark.usefixtures("_free_again")
def test_a_pod_of_a_statefulset_is_made_again(world: World) -> None:
    """By name and by selector: another pod of that name gets devices, and the former's are free."""
    stateful = Controller(world, "StatefulSet", replicas=1)
    eventually(lambda: bool(stateful.pods()), what="a pod is made")
    by_name = world.mount("by-name", "web-0").ready(60)
    selecting = world.mount(
        "selecting", "", target={"podName": None, "selector": {"matchLabels": LABELS}}
    ).ready()
    former = by_name.target
    world.api.delete(pod_path(world.namespace, "web-0"))
    for mount in (by_name, selecting):
        settled(mount, stateful, replicas=1, but={former["podUID"]})
        (row,) = mount.object()["status"]["targets"]
        assert row["podName"] == "web-0"
        path = row["devices"][0]["nodes"][0]["path"]
        world.testbed.kubectl(
            "exec", "-n", world.namespace, "web-0", "--", "sh", "-c", f": < {path}"
        )
    assert len(world.shadow_pods()) == 2
    for mount in (by_name, selecting):
        mount.delete()
