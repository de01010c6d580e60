# SPDX-License-Identifier: Apache-2.0
"""A reservation that others take away is lost safely; a target that ends gives its device back."""

import time

from cluster.world import Mount, World, eventually
from devicemount_testbed.api import Object, is_ready, pod_path


def _guarded(mount: Mount) -> Object:
    """Return the shadow pod once its process, the fence, runs."""
    eventually(
        lambda: mount.shadow_pods()[0]["status"].get("phase") == "Running", what="the fence stands"
    )
    return mount.shadow_pods()[0]


def _ready_anew(mount: Mount, since: str) -> None:
    """Wait until it is Ready by another grant than the one that stands since then."""

    def again(found: Object | None) -> bool:
        return is_ready(found) and (found or {})["status"]["targets"][0]["since"] != since

    mount.world.api.until(mount.path, again, deadline_s=30, what="Ready by a new reservation")


def test_a_shadow_pod_deleted_by_hand_while_idle_comes_back(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    mount = world.mount("lost", pod).ready()
    old, since = _guarded(mount), mount.target["since"]
    started = time.monotonic()
    world.api.delete(pod_path(world.namespace, old["metadata"]["name"]))
    eventually(
        lambda: old["metadata"]["uid"] not in {p["metadata"]["uid"] for p in mount.shadow_pods()},
        what="the old shadow pod is gone",
    )
    assert time.monotonic() - started < 20, "the fence was lowered, not waited for"
    _ready_anew(mount, since)
    assert pod.openable() == {path.rpartition("/")[2] for path in mount.files()}


def test_a_holder_is_ended_when_the_reservation_is_lost(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    mount = world.mount("lost", pod).ready()
    before = pod.identity()
    old, since = _guarded(mount), mount.target["since"]
    with pod.holding(mount.files()[0]):
        world.api.delete(pod_path(world.namespace, old["metadata"]["name"]))
        eventually(lambda: not pod.sh("pidof tail").split(), what="the holder is ended")
        _ready_anew(mount, since)
    assert pod.identity() == before
    assert pod.openable() == {path.rpartition("/")[2] for path in mount.files()}


def test_the_end_of_the_target_pod_gives_the_device_back(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    free = world.free(node)
    mount = world.mount("follows", pod).ready()
    pod.delete()
    mount.not_ready("TargetNotFound")
    eventually(lambda: world.free(node) == free, what="the device is free")
    again = world.pod("notebook", node=node)
    mount.ready()
    assert mount.target["podUID"] == again.uid
    assert len(again.openable()) == 1


def test_a_foreground_deletion_releases_like_any_other(world: World, node: str) -> None:
    """Garbage collection takes the mount's owner reference off the shadow pod meanwhile."""
    pod = world.pod("notebook", node=node)
    mount = world.mount("foreground", pod).ready()
    with pod.holding(mount.files()[0]):
        world.api.delete(mount.path, {"propagationPolicy": "Foreground"})
        mount.not_ready("DeviceBusy", deadline_s=10)
        assert len(mount.shadow_pods()) == 1
    eventually(lambda: world.api.get(mount.path) is None, what="the mount is gone")
    assert pod.openable() == set()
    assert world.shadow_pods() == []


def test_a_restarted_container_gets_the_same_device_again(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    mount = world.mount("stays", pod).ready()
    (path,), old = mount.files(), pod.identity()
    pod.kill_main_process()
    world.api.until(
        pod.path,
        lambda p: (
            bool(p)
            and p["status"]["containerStatuses"][0]["containerID"] != old[0]
            and "running" in p["status"]["containerStatuses"][0]["state"]
        ),
        deadline_s=30,
        what="restarted",
    )
    eventually(lambda: pod.opens(path), what="the device opens in the new container")
    mount.ready()
    assert pod.openable() == {path.rpartition("/")[2]}


def test_a_finished_target_gives_the_device_back(world: World) -> None:
    pod = world.pod(
        "job",
        restartPolicy="Never",
        containers=[
            {
                "name": "main",
                "image": "localhost/busybox:1",
                "command": ["sh", "-c", "while [ ! -e /tmp/end ]; do usleep 50000; done"],
            }
        ],
    )
    mount = world.mount("finishes", pod).ready()
    pod.sh("touch /tmp/end")
    mount.not_ready("TargetFinished")
    eventually(lambda: not world.shadow_pods(), what="the shadow pod is gone")
    mount.delete()
