# SPDX-License-Identifier: Apache-2.0
"""Deletion on real nodes: with garbage collection and namespaces, without the Node and without the
agent. It ends where release is provable, and no device is free before."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from cluster.world import VCS, Mount, Pod, World, eventually
from devicemount_testbed.api import MERGE_PATCH, Api, Object
from devicemount_testbed.cluster import Testbed

RELEASE = "devicemount.io/release-without-proof"
NODE = "/api/v1/nodes/node1"
LABEL = "devicemount.io/enabled"


def is_collected(mount: Mount) -> bool:
    return bool(mount.object()["metadata"]["finalizers"] == ["devicemount.io/finalizer"])


def agents(world: World) -> list[Object]:
    """Return node1's agent pods."""
    query = "?labelSelector=app.kubernetes.io/component%3Dagent&fieldSelector=spec.nodeName%3Dnode1"
    path = f"/api/v1/namespaces/devicemount-system/pods{query}"
    return list(world.api.call("GET", path)["items"])


@dataclass(frozen=True)
class Ending:
    """A namespace that is being deleted while a process has its mount's device."""

    path: str


@pytest.fixture(scope="module", autouse=True)
def ending(testbed: Testbed, api: Api) -> Ending:
    """Delete it before all else: it takes its time, in which the others run."""
    name = f"test-{secrets.token_hex(4)}"
    path = f"/api/v1/namespaces/{name}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    inside = World(testbed, api, name)
    pod = inside.pod("tenant", node="node2", terminationGracePeriodSeconds=5)
    mount = inside.mount("borrowed", pod).ready()
    pod.sh(f"exec 9<{mount.files()[0]}; tail -f /dev/null >/dev/null 2>&1 &")
    api.delete(path)
    return Ending(path)


def test_foreground_and_orphan_deletion_keep_the_fence_while_a_process_has_the_device(
    world: World,
) -> None:
    free = world.free("node1")
    pods = {policy: world.pod(policy) for policy in ("foreground", "orphan")}
    mounts = {policy: world.mount(policy, pod).ready() for policy, pod in pods.items()}
    with ExitStack() as held:
        for policy, mount in mounts.items():
            held.enter_context(holding(pods[policy], mount))
            names = ("-n", world.namespace, f"devicemount/{mount.name}")
            world.testbed.kubectl("delete", *names, f"--cascade={policy}", "--wait=false")
        for mount in mounts.values():
            mount.not_ready("DeviceBusy")
            eventually(partial(is_collected, mount), what="garbage collection has done its part")
            (shadow,) = mount.shadow_pods()
            assert "deletionTimestamp" not in shadow["metadata"]
        assert world.free("node1") == free - 2
    for mount in mounts.values():
        mount.gone()
    eventually(lambda: world.free("node1") == free, what="both devices are free")
    assert world.shadow_pods() == []


@contextmanager
def holding(pod: Pod, mount: Mount) -> Iterator[None]:
    (path,) = mount.files()
    with pod.holding(path):
        yield


def test_a_node_that_was_deleted_and_lives_is_asked_first(world: World) -> None:
    pod = world.pod("tenant")
    mount = world.mount("borrowed", pod).ready()
    container = pod.identity()[0].rpartition("/")[2]
    with holding(pod, mount), without_node(world):
        mount.ask_delete()
        mount.not_ready("DeviceBusy")
        end_holders(world, container)
        mount.gone()
        assert world.shadow_pods() == []
    assert not pod.openable()


def end_holders(world: World, container: str) -> None:
    """Kill what runs in a container of node1 beside its main process, from outside: without its
    Node nobody can exec into it."""
    script = (
        f"for p in $(grep -ls {container} /proc/[0-9]*/cgroup | cut -d/ -f3); do "
        'grep -q "^NSpid:.*[[:space:]]1$" /proc/$p/status || kill -9 $p; done'
    )
    world.testbed.exec("node1", ["sh", "-c", script])


@contextmanager
def without_node(world: World) -> Iterator[None]:
    """Have node1's object deleted for moments, and made again as it was: its kubelet fills it."""
    node = world.api.call("GET", NODE)
    kept = {key: node["metadata"].get(key) for key in ("name", "labels", "annotations")}
    spec = {key: node["spec"][key] for key in ("podCIDR", "podCIDRs") if key in node["spec"]}
    body = {"apiVersion": "v1", "kind": "Node", "metadata": kept, "spec": spec}
    world.api.delete(NODE)
    try:
        yield
    finally:
        world.api.call("POST", "/api/v1/nodes", body)
        world.api.until(NODE, is_ready_again, deadline_s=60, what="node1 is ready again")


def is_ready_again(node: Object | None) -> bool:
    if node is None:
        return False
    conditions = node.get("status", {}).get("conditions") or []
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    taints = [t["key"] for t in node["spec"].get("taints") or []]
    offers = node.get("status", {}).get("allocatable", {}).get(VCS) == "4"
    return ready and offers and "node.kubernetes.io/not-ready" not in taints


def end_without_an_agent(world: World) -> None:
    """Delete mounts of a node whose agent is gone: by the pod's last word, by an administrator's.

    Half a minute, in tests/soak; the component tests do the same with a stand-in agent.
    """
    free = world.free("node1")
    ends, stays = world.pod("ends", terminationGracePeriodSeconds=1), world.pod("stays")
    seen, vouched = world.mount("seen", ends).ready(), world.mount("vouched", stays).ready()
    with without_agent(world):
        seen.ask_delete()
        vouched.ask_delete()
        seen.not_ready("NodeNotEnabled")
        vouched.not_ready("NodeNotEnabled")
        eventually(lambda: "a target is watched" in watched(world, ends), what="it is watched")
        world.api.delete(ends.path)
        seen.gone()
        del world.pods["ends"]
        said: Object = {"metadata": {"annotations": {RELEASE: "looked with crictl"}}}
        world.api.call("PATCH", vouched.path, said, kind=MERGE_PATCH)
        vouched.gone()
        eventually(lambda: f"{VCS} vcs" in warning(world), what="it is told, with the device")
    eventually(lambda: world.free("node1") == free, what="both devices are free")
    eventually(
        lambda: not stays.openable(),
        what="the agent that came back has taken away what it found",
    )


def warning(world: World) -> str:
    """Return what the Event of a release without proof says, if there is one."""
    query = "?fieldSelector=reason%3DReleasedWithoutProof"
    path = f"/api/v1/namespaces/{world.namespace}/events{query}"
    return "".join(event["message"] for event in world.api.call("GET", path)["items"])


def watched(world: World, pod: Pod) -> str:
    """Return what the operators have said of a pod."""
    selector = "app.kubernetes.io/component=operator"
    said = world.testbed.kubectl(
        "logs", "-n", "devicemount-system", "-l", selector, "--tail=200", "--since=60s"
    )
    return "\n".join(
        line for line in said.splitlines() if f"{pod.world.namespace}/{pod.name}" in line
    )


@contextmanager
def without_agent(world: World) -> Iterator[None]:
    """Take node1 back from devicemount for a while: its agent ends."""
    change: Object = {"metadata": {"labels": {LABEL: None}}}
    world.api.call("PATCH", NODE, change, kind=MERGE_PATCH)
    try:
        eventually(lambda: not agents(world), what="node1's agent is gone")
        yield
    finally:
        change = {"metadata": {"labels": {LABEL: "true"}}}
        world.api.call("PATCH", NODE, change, kind=MERGE_PATCH)
        eventually(lambda: any(map(is_ready, agents(world))), what="node1's agent is back")


def is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def test_a_namespace_with_a_mount_that_is_in_use_ends(world: World, ending: Ending) -> None:
    """Its pods are deleted with it, shadow pods too: the loss ends the holder."""
    world.api.until(ending.path, lambda found: found is None, deadline_s=60, what="gone")
    listed = world.api.call("GET", "/api/v1/pods?labelSelector=devicemount.io/shadow")["items"]
    namespace = ending.path.rpartition("/")[2]
    assert [pod for pod in listed if pod["metadata"]["namespace"] == namespace] == []
