# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own sample device plugin, as it is.

Its devices are files that it mounts, with no device node: an answer that no shipped profile takes
for a device, so an administrator's profile of three lines says that it is one.
"""

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.borrowing import apply, await_allocatable, borrow, condition, look
from cluster.world import DEADLINE_S, SYSTEM, World, eventually
from devicemount_testbed.api import MERGE_PATCH, Api, pod_path
from devicemount_testbed.build import SAMPLE_DEVICE_PLUGIN, build_now
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.node import inside_environment
from vendors.inside import Mount
from vendors.plugin import known

RESOURCE = "example.com/resource"
IDS = {"Dev-1", "Dev-2"}
NODE = "node1"
PROFILES = f"/api/v1/namespaces/{SYSTEM}/configmaps/devicemount-profiles"
PROFILE = f"""\
name: sample
resources: [{RESOURCE}]
mountsOnly: true
"""


@pytest.fixture(scope="module")
def profile(testbed: Testbed, api: Api) -> Iterator[None]:
    """An administrator's profile, and the agents looking at it at once."""
    body = {"metadata": {"name": "devicemount-profiles"}, "data": {"sample.yaml": PROFILE}}
    api.call("POST", PROFILES.rpartition("/")[0], body)
    try:
        eventually(lambda: _agents_see(testbed, api, "sample.yaml"), what="agents have the profile")
        yield
    finally:
        api.delete(PROFILES)


@pytest.fixture(scope="module", autouse=True)
def _files() -> Iterator[None]:
    """Remove the files that it makes as devices; the runtime makes one that is missing anew."""
    yield
    for path in (Path("/tmp", one) for one in IDS):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


@pytest.fixture
def plugin(testbed: Testbed) -> Iterator[None]:
    with sample_plugin(testbed):
        yield


@contextmanager
def sample_plugin(testbed: Testbed) -> Iterator[None]:
    """Run it on the node, from when the kubelet knows its devices until it has ended."""
    program = build_now(testbed.layout, SAMPLE_DEVICE_PLUGIN)
    enter = testbed.exec_command(NODE, [str(program)])
    enter.remove("--pid")  # or it would be a child of nsenter, which signals would not reach
    log = testbed.layout.log_of("sample-device-plugin")
    with (
        log.open("w") as sink,
        subprocess.Popen(
            enter,
            env=inside_environment(testbed.layout),
            stdout=sink,
            stderr=sink,
        ) as process,
    ):
        try:
            eventually(lambda: known(testbed, NODE).get(RESOURCE) == IDS, what="it is registered")
            yield
        finally:
            process.terminate()
            process.wait(timeout=DEADLINE_S)


def test_without_a_profile_an_answer_of_mounts_alone_is_no_success(
    world: World, plugin: None
) -> None:
    await_allocatable(world, NODE, {RESOURCE: 1})
    pod = world.pod("notebook", node=NODE)
    before = look(pod)
    mount = apply(world, pod, {RESOURCE: 1})
    assert "mounts, no device nodes" in mount.not_ready("AllocationUnknown")
    assert look(pod) == before
    mount.delete()


def test_mounted_and_unmounted(world: World, profile: None, plugin: None) -> None:
    await_allocatable(world, NODE, {RESOURCE: 1})
    pod = world.pod("notebook", node=NODE)
    loan = borrow(world, pod, {RESOURCE: 1})
    (device,) = (one["id"] for one in loan.mount.target["devices"])
    assert loan.came.mounts == {
        f"/tmp/{device}": Mount(
            f"/tmp/{device}", is_read_only=False, options=frozenset({"nosuid", "nodev"})
        )
    }
    assert loan.came.nodes == {}
    loan.mount.delete()
    assert look(pod) == loan.before


def test_its_restart_and_its_devices_unhealthy_meanwhile(
    world: World, profile: None, testbed: Testbed
) -> None:
    """A plugin that ends makes all its devices unhealthy; what is mounted stays mounted."""
    with sample_plugin(testbed):
        await_allocatable(world, NODE, {RESOURCE: 1})
        pod = world.pod("notebook", node=NODE)
        loan = borrow(world, pod, {RESOURCE: 1})
    eventually(lambda: _degraded(loan.mount) == ("True", "DeviceUnhealthy"), what="unhealthy")
    assert loan.mount.target["devices"][0]["health"] == "Unhealthy"
    loan.still_there()
    with sample_plugin(testbed):
        eventually(lambda: _degraded(loan.mount)[0] != "True", what="healthy again")
        loan.still_there()
        loan.mount.delete()
        assert look(pod) == loan.before
        apply(world, pod, {RESOURCE: 1}, name="again").ready().delete()


def _degraded(mount: object) -> tuple[str, str]:
    said = condition(mount, "Degraded")
    return said.get("status", "False"), said.get("reason", "")


def _agents_see(testbed: Testbed, api: Api, name: str) -> bool:
    """Touch the agents' pods, so that the kubelet brings their volumes up to date, and look."""
    pods = api.call("GET", f"{pod_path(SYSTEM)}?labelSelector=app.kubernetes.io/component%3Dagent")
    seen = []
    for pod in pods["items"]:
        path = pod_path(SYSTEM, pod["metadata"]["name"])
        touched = {"metadata": {"annotations": {"test/touched": secrets.token_hex(4)}}}
        api.call("PATCH", path, touched, kind=MERGE_PATCH)
        volumes = (
            testbed.node_root(pod["spec"]["nodeName"])
            / "var/lib/kubelet/pods"
            / pod["metadata"]["uid"]
            / "volumes/kubernetes.io~configmap/profiles"
        )
        seen.append((volumes / name).exists())
    return all(seen) and bool(seen)
