# SPDX-License-Identifier: Apache-2.0
"""Slices of a GPU that Volcano decides: the right one, with its limits, or none.

The plugin does not know whose call it answers and takes the oldest pod that waits for as many
slices (vendors.volcano). What it answered for another pod must never reach a target, however many
pods ask at once.
"""

import base64
import json
import shlex
from collections.abc import Iterator

import pytest

from cluster.borrowing import (
    ALLOWED,
    apply,
    await_allocatable,
    borrow,
    delete,
    look,
    opens_by_number,
)
from cluster.world import Mount, Pod, World, eventually
from devicemount_testbed.api import Object, is_ready, pod_path
from devicemount_testbed.cluster import Testbed
from vendors.nvidia import minors
from vendors.plugin import CHECKPOINT
from vendors.volcano import CORES, DECIDED, MEMORY, NUMBER, SCHEDULER, Volcano, parse, volcano

RESERVATION = {"schedulerName": SCHEDULER, "acceptEnvFile": True}
SLICE = {NUMBER: 1, MEMORY: 20, CORES: 5}  # 20 MiB, 5 percent: enough for all at once
ROUNDS = 5  # hundreds: tests/soak/test_vendors.py
OTHERS = 10
CACHE = "/tmp/vgpu"


@pytest.fixture(scope="module", params=["node1", "node2"])
def vgpus(request: pytest.FixtureRequest, testbed: Testbed) -> Iterator[Volcano]:
    with volcano(testbed, str(request.param), memory_ids=80) as made:
        yield made


def test_a_slice_with_its_limits_in_the_env_file(world: World, vgpus: Volcano) -> None:
    await_allocatable(world, vgpus.node, SLICE)
    pod = world.pod("notebook", node=vgpus.node)
    loan = borrow(world, pod, SLICE, reservation=RESERVATION)

    (shadow,) = loan.mount.shadow_pods()
    (decided,) = parse(shadow["metadata"]["annotations"][DECIDED])
    gpus = {path for path in loan.came.nodes if path in minors().values()}
    assert gpus == {minors()[decided.gpu]}
    assert set(loan.came.mounts) == {
        "/usr/local/vgpu/libvgpu.so", CACHE, "/tmp/vgpulock", "/etc/ld.so.preload",
    }  # fmt: skip
    assert shadow["metadata"]["uid"] in loan.came.mounts[CACHE].source
    assert loan.came.mounts["/etc/ld.so.preload"].is_read_only
    limits = _variables(pod.sh(f"cat /run/devicemount/{loan.mount.name}.env"))
    assert limits["CUDA_DEVICE_MEMORY_LIMIT_0"] == "20m"
    assert limits["CUDA_DEVICE_SM_LIMIT"] == "5"
    assert limits["CUDA_DEVICE_MEMORY_SHARED_CACHE"].startswith(f"{CACHE}/")
    numbers = loan.came.numbers().values()
    assert set(opens_by_number(pod, numbers).values()) == {ALLOWED}
    loan.give_back()


def test_a_slice_that_only_variables_limit_is_refused_before_anything_is_reserved(
    world: World, vgpus: Volcano
) -> None:
    await_allocatable(world, vgpus.node, SLICE)
    pod = world.pod("notebook", node=vgpus.node)
    before, answered = look(pod), len(vgpus.answered)
    mount = apply(world, pod, SLICE, reservation={"schedulerName": SCHEDULER})
    assert "acceptEnvFile" in mount.not_ready("EnvFileNeeded")
    assert world.shadow_pods() == []
    assert len(vgpus.answered) == answered
    delete(mount)
    assert look(pod) == before


@pytest.mark.parametrize("vgpus", ["node1"], indirect=True)
def test_never_the_slice_of_another(world: World, vgpus: Volcano) -> None:
    """Two DeviceMounts and ten plain pods ask at once, again and again."""
    swaps = rounds(world, vgpus, count=ROUNDS)
    assert swaps, "no pod was given another's: the plugin guessed right each time"


def rounds(world: World, vgpus: Volcano, *, count: int) -> int:
    """Run the rounds; return how often the plugin gave a pod what was another's."""
    await_allocatable(world, vgpus.node, SLICE)
    pods = [world.pod(f"notebook-{n}", node=vgpus.node) for n in range(2)]
    before = [look(pod) for pod in pods]
    swaps = 0
    for number in range(count):
        others = [_plain(world, f"plain-{number}-{n}") for n in range(OTHERS)]
        mounts = [_ask(world, pod) for pod in pods]
        for pod, mount in zip(pods, mounts, strict=True):
            _ready_and_never_wrong(pod, mount)
        _all_allocated(world, vgpus, others)
        swaps += _swaps(vgpus)
        for mount in mounts:
            mount.ask_delete()
        for name in others:
            world.api.delete(pod_path(world.namespace, name), {"gracePeriodSeconds": 0})
        for mount in mounts:
            mount.gone()
        assert [look(pod) for pod in pods] == before, number
    return swaps


def _variables(env_file: str) -> dict[str, str]:
    """Return the variables of an env file as a shell that reads it has them."""
    words = shlex.split(env_file, comments=True)
    return dict(word.split("=", 1) for word in words if "=" in word)


def _ask(world: World, pod: Pod) -> Mount:
    spec = {"reservation": RESERVATION, "resources": {"limits": SLICE}}
    return world.mount(f"for-{pod.name}", pod, **spec)


def _plain(world: World, name: str) -> str:
    """Start a pod that is allocated a slice and waits for a volume: no container is needed."""
    container = {
        "name": "main",
        "image": "localhost/busybox:1",
        "resources": {"limits": dict(SLICE)},
        "volumeMounts": [{"name": "never", "mountPath": "/never"}],
    }
    spec = {
        "schedulerName": SCHEDULER,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [{"name": "never", "secret": {"secretName": "never"}}],
    }
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    world.api.call("POST", pod_path(world.namespace), body)
    return name


def _ready_and_never_wrong(pod: Pod, mount: Mount) -> None:
    """Wait for Ready; at no time may the target have what is not its shadow pods'."""

    def is_right_and_ready() -> bool:
        found = mount.object()
        _check_right(pod, mount)
        return is_ready(found)

    eventually(is_right_and_ready, what=f"{mount.name} is Ready", deadline_s=60)
    assert _check_right(pod, mount), "Ready without a slice"


def _check_right(pod: Pod, mount: Mount) -> bool:
    """Tell whether the target has a slice; fail if it is not its own shadow pod's."""
    seen = look(pod)
    gpus = {path for path in seen.nodes if path in minors().values()}
    cache = seen.mounts.get(CACHE)
    if not gpus and cache is None:
        return False
    shadows = mount.shadow_pods()
    decided = {
        minors()[one.gpu]
        for shadow in shadows
        for one in parse(shadow["metadata"].get("annotations", {}).get(DECIDED, ""))
    }
    assert gpus <= decided, f"{mount.name} has {gpus}, decided was {decided}"
    if cache is not None:
        assert any(shadow["metadata"]["uid"] in cache.source for shadow in shadows), cache
    return bool(gpus)


def _all_allocated(world: World, vgpus: Volcano, names: list[str]) -> None:
    """Wait until each of the pods was allocated, or refused, so that the next round is its own."""

    def are_allocated() -> bool:
        found = {entry["PodUID"] for entry in _entries(vgpus)}
        pods = world.api.call("GET", pod_path(world.namespace))["items"]
        ours = [pod for pod in pods if pod["metadata"]["name"] in names]
        return all(
            pod["metadata"]["uid"] in found or pod["status"].get("phase") == "Failed"
            for pod in ours
        )

    eventually(are_allocated, what="the plain pods are allocated")


def _swaps(vgpus: Volcano) -> int:
    """Return how many containers have the answer that was meant for another pod."""
    return sum(
        1
        for entry in _entries(vgpus)
        if entry["PodUID"].encode() not in base64.b64decode(entry["AllocResp"])
    )


def _entries(vgpus: Volcano) -> list[Object]:
    written = json.loads((vgpus.files.root / CHECKPOINT).read_text())["Data"]
    entries = written["PodDeviceEntries"] or []
    return [entry for entry in entries if entry["ResourceName"] == NUMBER]
