# SPDX-License-Identifier: Apache-2.0
"""Slices of a GPU that Volcano decides: the right one, with its limits, or none.

The plugin does not know whose call it answers and takes the oldest pod that waits for as many
slices (vendors.volcano). What it answered for another pod must never reach a target, however many
pods ask at once.
"""

import base64
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

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
from devicemount_testbed.api import is_ready, pod_path
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.waiting import wait_until
from vendors.inside import Picture, first_process, mounts_of
from vendors.nvidia import minors
from vendors.plugin import CHECKPOINT
from vendors.volcano import CORES, DECIDED, MEMORY, NUMBER, SCHEDULER, Volcano, parse, volcano

RESERVATION = {"schedulerName": SCHEDULER, "acceptEnvFile": True}
SLICE = {NUMBER: 1, MEMORY: 20, CORES: 5}  # 20 MiB, 5 percent: enough for all at once
ROUNDS = 20  # hundreds: tests/soak/test_vendors.py
OTHERS = 10
LOOK_S = 0.1  # looking more often would slow down what is looked at
CACHE = "/tmp/vgpu"


@pytest.fixture(scope="module")
def machines(testbed: Testbed) -> Iterator[Mapping[str, Volcano]]:
    """Every node has GPUs."""
    nodes = [node.name for node in testbed.nodes]
    with ExitStack() as undo:
        yield {node: undo.enter_context(volcano(testbed, node, memory_ids=80)) for node in nodes}


@pytest.fixture(scope="module", params=["node1", "node2"])
def vgpus(request: pytest.FixtureRequest, machines: Mapping[str, Volcano]) -> Volcano:
    return machines[str(request.param)]


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


@dataclass(frozen=True)
class Target:
    """A pod that runs all the time, and the machine's view of its only container."""

    pod: Pod
    process: Path
    before: Picture

    @classmethod
    def of(cls, pod: Pod) -> "Target":
        pid = first_process(pod.identity()[0])
        return cls(pod, Path(f"/proc/{pid}"), look(pod))

    def gpus(self) -> set[str]:
        root = self.process / "root"
        return {path for path in minors().values() if os.path.lexists(f"{root}{path}")}

    def cache(self) -> str:
        """Return what is mounted as its slice's cache; "": nothing."""
        mounted = mounts_of(self.process).get(CACHE)
        return mounted.source if mounted else ""


def test_never_the_slice_of_another(world: World, machines: Mapping[str, Volcano]) -> None:
    """Two DeviceMounts and ten plain pods ask at once on one node, again and again."""
    swaps = rounds(world, machines, count=ROUNDS)
    assert swaps, "no pod was given another's: the plugin guessed right each time"


def rounds(world: World, machines: Mapping[str, Volcano], *, count: int) -> int:
    """Run the rounds; return how often the plugin gave a pod what was another's.

    A mount pauses after an answer that was not its own: meanwhile the other nodes have rounds.
    """
    numbers = iter(range(count))

    def on(node: str) -> int:
        try:
            targets = [Target.of(world.pod(f"notebook-{node}-{n}", node=node)) for n in range(2)]
            await_allocatable(world, node, SLICE)
            return sum(_round(world, machines[node], targets, number=n) for n in numbers)
        finally:
            list(numbers)  # a node that fails leaves the others no more to do

    with ThreadPoolExecutor(len(machines)) as pool:
        return sum(pool.map(on, machines))


def _round(world: World, vgpus: Volcano, targets: Sequence[Target], *, number: int) -> int:
    others = [_plain(world, f"plain-{number}-{n}", node=vgpus.node) for n in range(OTHERS)]
    mounts = [_ask(world, target.pod) for target in targets]
    _ready_and_never_wrong(targets, mounts)
    swaps = _all_allocated(world, vgpus, others)
    for mount in mounts:
        mount.ask_delete()
    for name in others:
        world.api.delete(pod_path(world.namespace, name), {"gracePeriodSeconds": 0})
    for mount in mounts:
        mount.gone()
    for target in targets:
        assert look(target.pod) == target.before, number
    return swaps


def _variables(env_file: str) -> dict[str, str]:
    """Return the variables of an env file as a shell that reads it has them."""
    words = shlex.split(env_file, comments=True)
    return dict(word.split("=", 1) for word in words if "=" in word)


def _ask(world: World, pod: Pod) -> Mount:
    spec = {"reservation": RESERVATION, "resources": {"limits": SLICE}}
    return world.mount(f"for-{pod.name}", pod, **spec)


def _plain(world: World, name: str, *, node: str) -> str:
    """Start a pod that is allocated a slice and waits for a volume: no container is needed."""
    container = {
        "name": "main",
        "image": "localhost/busybox:1",
        "resources": {"limits": dict(SLICE)},
        "volumeMounts": [{"name": "never", "mountPath": "/never"}],
    }
    spec = {
        "schedulerName": SCHEDULER,
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [{"name": "never", "secret": {"secretName": "never"}}],
    }
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    world.api.call("POST", pod_path(world.namespace), body)
    return name


def _ready_and_never_wrong(targets: Sequence[Target], mounts: Sequence[Mount]) -> None:
    """Wait for Ready; at no time may a target have what is not its shadow pods'."""

    def are_right_and_ready() -> bool:
        found = [mount.object() for mount in mounts]
        slices = [_check_right(*each) for each in zip(targets, mounts, strict=True)]
        is_done = all(map(is_ready, found))
        assert all(slices) or not is_done, "Ready without a slice"
        return is_done

    wait_until(are_right_and_ready, what="both are Ready", seconds=60, poll_s=LOOK_S)


def _check_right(target: Target, mount: Mount) -> bool:
    """Tell whether the target has a slice; fail if it is not its own shadow pod's."""
    gpus, cache = target.gpus(), target.cache()
    if not gpus and not cache:
        return False
    shadows = mount.shadow_pods()
    decided = {
        minors()[one.gpu]
        for shadow in shadows
        for one in parse(shadow["metadata"].get("annotations", {}).get(DECIDED, ""))
    }
    assert gpus <= decided, f"{mount.name} has {gpus}, decided was {decided}"
    if cache:
        assert any(shadow["metadata"]["uid"] in cache for shadow in shadows), cache
    return bool(gpus)


def _all_allocated(world: World, vgpus: Volcano, names: list[str]) -> int:
    """Wait until each was allocated, or refused; return how many have what another was to have."""

    def served() -> set[str]:
        pods = world.api.call("GET", pod_path(world.namespace))["items"]
        ours = [pod for pod in pods if pod["metadata"]["name"] in names]
        return {pod["metadata"]["uid"] for pod in ours if pod["status"].get("phase") != "Failed"}

    eventually(lambda: served() <= _answers(vgpus).keys(), what="the plain pods are allocated")
    answers = _answers(vgpus)
    return sum(uid.encode() not in answers[uid] for uid in served())


def _answers(vgpus: Volcano) -> dict[str, bytes]:
    """Return what the plugin answered for each pod, as the kubelet keeps it."""
    written = json.loads((vgpus.files.root / CHECKPOINT).read_text())["Data"]
    return {
        entry["PodUID"]: base64.b64decode(entry["AllocResp"])
        for entry in written["PodDeviceEntries"] or []
        if entry["ResourceName"] == NUMBER
    }
