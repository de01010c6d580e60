# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs for a pod that runs: the plugin's four ways to answer, MIG instances, time slices.

The node is a stand-in machine (vendors.nvidia). Where the plugin answers by CDI, a second pod that
has the same GPUs by its own limits shows what the runtime, NVIDIA's spec and NVIDIA's hooks make of
them; where the nvidia runtime would resolve a variable, the vendor-answers file says what it gives.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cluster.borrowing import (
    ALLOWED,
    Loan,
    apply,
    await_allocatable,
    borrow,
    condition,
    look,
    opens_by_number,
)
from cluster.world import Pod, World
from devicemount_testbed.cluster import Testbed
from vendor_answers import resolution
from vendors.inside import Mount, Node, expected_nodes
from vendors.nvidia import DRIVER, GPU, LIBRARIES, MIG, Nvidia, nvidia

FILE_OF_LIBRARY = f"{LIBRARIES}/libcuda.so.{DRIVER}"
ROOT = resolution()["nvidia"]["fake_root"]


@pytest.fixture(scope="module", params=["node1", "node2"])
def gpus(request: pytest.FixtureRequest, testbed: Testbed) -> Iterator[Nvidia]:
    with nvidia(testbed, str(request.param)) as made:
        yield made


def came_and_goes(loan: Loan, nodes: dict[str, Node]) -> None:
    """The nodes are exactly these and can be opened; afterwards nothing is left."""
    assert loan.came.nodes == nodes
    numbers = {node.number for node in nodes.values()}
    assert opens_by_number(loan.pod, numbers) == dict.fromkeys(sorted(numbers), ALLOWED)
    assert f"/run/devicemount/{loan.mount.name}.ready" in loan.came.others
    loan.give_back()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("nvidia-envvar", "main"),
        ("nvidia-volume-mounts", "main"),
        ("nvidia-device-specs", "main"),
        ("nvidia-timeslice", "main"),
    ],
    ids=["envvar", "volume-mounts", "device specs", "time slices of one GPU"],
)
def test_what_the_plugin_names_the_driver_resolves(
    world: World, gpus: Nvidia, file: str, name: str
) -> None:
    case = gpus.answers(file, name)
    await_allocatable(world, gpus.node, {GPU: 2})
    loan = borrow(world, world.pod("notebook", node=gpus.node), {GPU: 2})
    assert loan.came.links == {link["path"]: link["target"] for link in case.links()}
    assert loan.came.mounts == {}
    said = condition(loan.mount, "Degraded")
    assert (said["status"], said["reason"]) == ("True", "LibrariesMissing")
    assert "libcuda.so.1" in said["message"]
    assert "NVIDIA_VISIBLE_DEVICES=none" in said["message"]
    came_and_goes(loan, expected_nodes(case, ROOT))


@pytest.mark.parametrize("file", ["nvidia-cdi-cri", "nvidia-cdi-annotations"])
def test_a_gpu_by_cdi_is_what_the_runtime_makes_of_it(
    world: World, gpus: Nvidia, file: str
) -> None:
    case = gpus.answers(file)
    await_allocatable(world, gpus.node, {GPU: 2})
    pod = world.pod("notebook", node=gpus.node)
    born = _born_with(world, pod, {GPU: 2})
    loan = borrow(world, pod, {GPU: 2})

    assert loan.came.nodes == born.nodes
    assert set(born.nodes) == set(expected_nodes(case, ROOT))
    assert loan.came.mounts == born.mounts
    assert FILE_OF_LIBRARY in born.mounts
    assert loan.came.links == born.links
    assert condition(loan.mount, "Degraded").get("status", "False") == "False"
    env = pod.sh(f"cat /run/devicemount/{loan.mount.name}.env")
    assert f"LD_LIBRARY_PATH={LIBRARIES}" in env.replace("'", "").replace('"', "")
    came_and_goes(loan, dict(born.nodes))


def test_mig_instances_as_device_specs(world: World, gpus: Nvidia) -> None:
    case = gpus.answers("nvidia-mig", "device specs")
    await_allocatable(world, gpus.node, {MIG: 2})
    loan = borrow(world, world.pod("notebook", node=gpus.node), {MIG: 2})
    came_and_goes(loan, expected_nodes(case, ROOT))


def test_a_mig_instance_that_nobody_can_resolve_is_no_success(world: World, gpus: Nvidia) -> None:
    """A MIG UUID names its GPU and instance only to NVML, a CDI spec or NVIDIA's runtime."""
    gpus.answers("nvidia-mig")
    await_allocatable(world, gpus.node, {MIG: 2})
    pod = world.pod("notebook", node=gpus.node)
    before = look(pod)
    mount = apply(world, pod, {MIG: 2})
    assert "MIG-6d0f2b84-3e71-5c9a-a4d8-f15b7e902c36" in mount.not_ready("AllocationUnknown")
    assert look(pod) == before


def test_mig_instances_by_the_spec_that_the_plugin_wrote(world: World, gpus: Nvidia) -> None:
    case = gpus.answers("nvidia-mig", "cdi-cri")
    await_allocatable(world, gpus.node, {MIG: 1})
    pod = world.pod("notebook", node=gpus.node)
    born = _born_with(world, pod, {MIG: 1})
    loan = borrow(world, pod, {MIG: 1})
    assert loan.came.nodes == born.nodes
    came_and_goes(loan, expected_nodes(case, ROOT))


def test_a_target_that_has_the_libraries_is_not_degraded(world: World, gpus: Nvidia) -> None:
    gpus.answers("nvidia-envvar")
    await_allocatable(world, gpus.node, {GPU: 2})
    pod = _pod_with_libraries(world, gpus.node)
    loan = borrow(world, pod, {GPU: 2})
    assert condition(loan.mount, "Degraded").get("status", "False") == "False"
    loan.give_back()


@dataclass(frozen=True)
class _Born:
    """What a pod has from its start, besides what its image and the kubelet give any pod."""

    nodes: dict[str, Node]
    links: dict[str, str]
    mounts: dict[str, Mount]


def _born_with(world: World, plain: Pod, limits: dict[str, int]) -> _Born:
    """Start a pod with the devices in its own limits, see what the runtime gave it, end it."""
    pod = world.pod("born", node=plain.node, limits=limits)
    with_devices, without = look(pod), look(plain)
    pod.delete()
    del world.pods["born"]
    world.api.until(pod.path, lambda found: found is None, deadline_s=30, what="gone")
    return _Born(
        {p: n for p, n in with_devices.nodes.items() if p not in without.nodes},
        {p: t for p, t in with_devices.links.items() if p not in without.links},
        {p: m for p, m in with_devices.mounts.items() if p not in without.mounts},
    )


def _pod_with_libraries(world: World, node: str) -> Pod:
    """Start a pod as an image of the vendor's would be: with the driver's libraries."""
    container = {
        "name": "main",
        "image": "localhost/busybox:1",
        "volumeMounts": [{"name": "driver", "mountPath": LIBRARIES, "readOnly": True}],
    }
    volume = {"name": "driver", "hostPath": {"path": LIBRARIES}}
    return world.pod("with-libraries", node=node, containers=[container], volumes=[volume])
