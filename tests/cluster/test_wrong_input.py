# SPDX-License-Identifier: Apache-2.0
"""Wrong input is refused at once, or shown by a reason of its own that says what to do."""

import pytest

from cluster.world import World, eventually
from devicemount_testbed.api import mount_path


def test_a_pod_that_does_not_exist_yet(world: World) -> None:
    mount = world.mount("early", "notebook")
    assert "notebook" in mount.not_ready("TargetNotFound", deadline_s=10)
    world.pod("notebook")
    mount.ready()


def test_a_container_that_does_not_exist(world: World) -> None:
    pod = world.pod("notebook")
    mount = world.mount("wrong", pod, target={"container": "nobody"})
    message = mount.not_ready("ContainerNotFound", deadline_s=10)
    assert "nobody" in message
    assert "main" in message


def test_two_containers_and_none_named(world: World) -> None:
    image = "localhost/busybox:1"
    two = [{"name": "main", "image": image}, {"name": "side", "image": image}]
    pod = world.pod("pair", containers=two)
    message = world.mount("which", pod).not_ready("ContainerAmbiguous", deadline_s=10)
    assert "main" in message
    assert "side" in message
    named = world.mount("named", pod, target={"container": "side"}).ready()
    (path,) = named.files()
    assert pod.run("sh", "-c", f"true < {path}", container="side").returncode == 0
    assert pod.run("ls", path, container="main").returncode != 0


def test_the_default_container_annotation_chooses(world: World) -> None:
    image = "localhost/busybox:1"
    two = [{"name": "main", "image": image}, {"name": "side", "image": image}]
    pod = world.pod("pair", containers=two)
    annotation = {"kubectl.kubernetes.io/default-container": "side"}
    world.api.call(
        "PATCH",
        pod.path,
        {"metadata": {"annotations": annotation}},
        kind="application/merge-patch+json",
    )
    mount = world.mount("default", pod).ready()
    assert mount.target["containerName"] == "side"


def test_a_resource_that_no_node_has(world: World) -> None:
    pod = world.pod("notebook")
    mount = world.mount("unknown", pod, resource="example.com/nothing")
    assert "example.com/nothing" in mount.not_ready("ResourceUnknown", deadline_s=10)


@pytest.mark.parametrize("count", [0, -1, 0.5, "0", "-1", "0.5", "many"])
def test_a_count_that_is_none_is_refused_at_once(world: World, count: object) -> None:
    assert "resources.limits" in world.refused("wrong", "notebook", count=count)


@pytest.mark.parametrize("resource", ["cpu", "memory", "nodomain"])
def test_a_resource_that_is_no_device_is_refused_at_once(world: World, resource: str) -> None:
    assert "resources.limits" in world.refused("wrong", "notebook", resource=resource)


def test_an_unknown_field_is_refused_by_kubectl(world: World) -> None:
    assert "frobnicate" in world.refused("wrong", "notebook", frobnicate=True)


def test_none_of_it_makes_the_operator_log_a_traceback(world: World) -> None:
    world.mount("a", "nobody", resource="example.com/nothing").not_ready("TargetNotFound")
    world.api.delete(mount_path(world.namespace, "a"))
    eventually(
        lambda: world.api.get(mount_path(world.namespace, "a")) is None, what="the mount is gone"
    )
    assert "Traceback" not in world.operator_log()
