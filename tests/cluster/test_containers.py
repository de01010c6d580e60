# SPDX-License-Identifier: Apache-2.0
"""Targets of all kinds: sidecars, init and ephemeral containers by name, static pods."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.world import Pod, World, eventually
from devicemount_testbed.api import Object, condition

IMAGE = "localhost/busybox:1"
STATIC_PODS = "/var/lib/kubelet/static-pods"
SLEEP = ["sh", "-c", "exec tail -f /dev/null"]
STRATEGIC = "application/strategic-merge-patch+json"


def of_kinds(world: World) -> Pod:
    """A pod with an init container that has completed, a sidecar, and an ephemeral container."""
    init = [
        {"name": "setup", "image": IMAGE, "command": ["true"]},
        {"name": "side", "image": IMAGE, "command": SLEEP, "restartPolicy": "Always"},
    ]
    pod = world.pod("kinds", node="node2", initContainers=init)
    debug = {"name": "debug", "image": IMAGE, "command": SLEEP}
    patch: Object = {"spec": {"ephemeralContainers": [debug]}}
    world.api.call("PATCH", f"{pod.path}/ephemeralcontainers", patch, kind=STRATEGIC)
    return pod


def test_containers_of_every_kind_are_targets_where_they_are_named(world: World) -> None:
    pod = of_kinds(world)
    side = world.mount("side", pod, target={"container": "side"})
    debug = world.mount("debug", pod, target={"container": "debug"})
    setup = world.mount("setup", pod, target={"container": "setup"})
    default = world.mount("default", pod)
    opened = {
        name: set(pod.sh(f"ls {mount.ready().files()[0]}", container=name).split())
        for name, mount in (("side", side), ("debug", debug), ("main", default))
    }
    assert all(opened.values())
    assert default.target["containerName"] == "main"
    assert "has ended" in setup.not_ready("TargetFinished")
    for mount in (side, debug, default, setup):
        mount.ask_delete()
    for mount in (side, debug, default, setup):
        mount.gone()


def test_a_static_pod_gets_its_device_and_gives_it_back(world: World) -> None:
    free = world.free("node1")
    with static_pod(world) as pod:
        shown = pod.object()["metadata"]
        mount = world.mount("borrowed", pod).ready()
        uid = mount.target["podUID"]
        assert uid == shown["annotations"]["kubernetes.io/config.mirror"] != shown["uid"]
        assert pod.opens(mount.files()[0]) or pod.exists(mount.files()[0])
    found = world.api.until(
        mount.path,
        lambda m: condition(m, "Ready").get("reason") in ("TargetNotFound", "TargetFinished"),
        deadline_s=30,
        what="its end is noticed",
    )
    assert found is not None
    eventually(lambda: world.free("node1") == free, what="the device is free")
    mount.delete()


@contextmanager
def static_pod(world: World) -> Iterator[Pod]:
    """Have node1's kubelet run a pod of a file of its own until the block ends."""
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "static", "namespace": world.namespace},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": IMAGE, "command": SLEEP}],
        },
    }
    path = f"{STATIC_PODS}/{world.namespace}.json"
    script = f"cat > /tmp/static.json <<'END'\n{json.dumps(body)}\nEND\nmv /tmp/static.json {path}"
    done = world.testbed.exec("node1", ["sh", "-c", script])
    assert done.returncode == 0, done.stderr
    pod = Pod(world, "static-node1", "node1")
    try:
        world.api.until(pod.path, is_running, deadline_s=60, what="running")
        yield pod
    finally:
        world.testbed.exec("node1", ["rm", "-f", path])
        world.api.until(pod.path, lambda found: found is None, deadline_s=60, what="gone")


def is_running(found: Object | None) -> bool:
    statuses = (found or {}).get("status", {}).get("containerStatuses") or []
    return bool(statuses) and all("running" in s["state"] for s in statuses)
