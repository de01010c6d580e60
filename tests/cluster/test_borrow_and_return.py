# SPDX-License-Identifier: Apache-2.0
"""The whole path: a device for a container that runs already, and back."""

from cluster.world import FUSE, LOOP, VCS, World, eventually


def test_a_device_is_borrowed_and_returned(world: World, each_node: str) -> None:
    quota = {"metadata": {"name": "devices"}, "spec": {"hard": {f"requests.{VCS}": "3"}}}
    quotas = f"/api/v1/namespaces/{world.namespace}/resourcequotas"
    world.api.call("POST", quotas, quota)
    pod = world.pod("notebook", node=each_node)
    before, free = pod.identity(), world.free(each_node)
    assert pod.openable() == set()

    mount = world.mount("borrowed", pod)
    world.testbed.kubectl(
        "wait", "-n", world.namespace, "--for=condition=Ready", "dm/borrowed", "--timeout=30s"
    )

    (path,) = mount.files()
    assert pod.opens(path)
    assert pod.openable() == {path.rpartition("/")[2]}
    assert world.free(each_node) == free - 1

    def used() -> str:
        return str(world.api.call("GET", f"{quotas}/devices")["status"]["used"][f"requests.{VCS}"])

    eventually(lambda: used() == "1", what="the quota counts one device")
    shown = world.testbed.kubectl("get", "-n", world.namespace, "dm").splitlines()
    assert shown[0].split() == [
        "NAME", "TARGET", "CONTAINER", "NODE", "DEVICES", "READY", "REASON", "AGE",
    ]  # fmt: skip
    device = mount.target["devices"][0]["id"]
    assert shown[1].split()[:7] == [
        "borrowed", "notebook", "main", each_node, f'["{device}"]', "1/1", "Mounted",
    ] or shown[1].split()[:7] == [
        "borrowed", "notebook", "main", each_node, device, "1/1", "Mounted",
    ]  # fmt: skip

    mount.delete()

    assert pod.openable() == set()
    assert not pod.exists(path)
    assert pod.identity() == before
    assert world.shadow_pods() == []
    assert world.free(each_node) == free
    eventually(lambda: used() == "0", what="the quota counts none again")


def test_two_mounts_on_one_container_are_independent(world: World, each_node: str) -> None:
    pod = world.pod("notebook", node=each_node)
    first, second = world.mount("first", pod), world.mount("second", pod)
    one, two = first.ready().files() + second.ready().files()
    assert one != two
    assert pod.openable() == {path.rpartition("/")[2] for path in (one, two)}

    with pod.holding(two):
        first.delete()
        assert pod.openable() == {two.rpartition("/")[2]}
        assert pod.opens(two)
        assert not pod.exists(one)


def test_two_devices_in_one_mount(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    mount = world.mount("pair", pod, count=2).ready()
    assert len(mount.target["devices"]) == 2
    assert pod.openable() == {path.rpartition("/")[2] for path in mount.files()}
    mount.delete()
    assert pod.openable() == set()


def test_a_block_device(world: World, each_node: str) -> None:
    pod = world.pod("notebook", node=each_node)
    mount = world.mount("disk", pod, resource=LOOP).ready()
    (path,) = mount.files()
    assert pod.opens(path)
    mount.delete()
    assert not pod.exists(path)


def test_one_device_file_shared_by_two_mounts_stays_until_the_last(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    first = world.mount("first", pod, resource=FUSE).ready()
    second = world.mount("second", pod, resource=FUSE).ready()
    assert first.files() == second.files() == ["/dev/fuse"]
    first.delete()
    assert pod.opens("/dev/fuse")
    second.delete()
    assert not pod.exists("/dev/fuse")


def test_a_target_without_shell_or_mknod(world: World, each_node: str) -> None:
    pod = world.pod("scratch", node=each_node, image="localhost/scratch-target:1")
    assert pod.run("/target", "open", "/dev/vcs", "/dev/vcs1").returncode == 1
    mount = world.mount("borrowed", pod).ready()
    (path,) = mount.files()
    assert pod.run("/target", "open", path).stdout.strip() == f"{path} ok"
    mount.delete()
    assert "ok" not in pod.run("/target", "open", path).stdout


def test_suspend_gives_the_devices_back_and_keeps_the_object(world: World, node: str) -> None:
    pod = world.pod("notebook", node=node)
    mount = world.mount("borrowed", pod).ready()
    patch = "application/merge-patch+json"
    world.api.call("PATCH", mount.path, {"spec": {"suspend": True}}, kind=patch)
    eventually(
        lambda: any(
            c["type"] == "Suspended" and c["status"] == "True"
            for c in mount.object()["status"]["conditions"]
        ),
        what="Suspended",
    )
    assert pod.openable() == set()
    assert world.shadow_pods() == []
    world.api.call("PATCH", mount.path, {"spec": {"suspend": False}}, kind=patch)
    mount.ready()
    assert len(pod.openable()) == 1
