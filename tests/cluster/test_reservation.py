# SPDX-License-Identifier: Apache-2.0
"""What a DeviceMount may say of its reservation, in front of the real scheduler and kubelet."""

from collections.abc import Callable, Iterator

import pytest

from cluster.world import World
from devicemount_testbed.api import Object

PRIORITIES = "/apis/scheduling.k8s.io/v1/priorityclasses"
RUNTIMES = "/apis/node.k8s.io/v1/runtimeclasses"
CLASSES = "/apis/resource.k8s.io/v1/deviceclasses"
SLICES = "/apis/resource.k8s.io/v1/resourceslices"
QUEUE = "scheduling.volcano.sh/queue-name"

Make = Callable[..., str]


@pytest.fixture
def made(world: World) -> Iterator[Make]:
    """Make objects of the whole cluster, named after the test's namespace, until the test ends."""
    paths = []

    def make(path: str, **body: object) -> str:
        name = f"{world.namespace}-{len(paths)}"
        world.api.call("POST", path, {"metadata": {"name": name}, **body})
        paths.append(f"{path}/{name}")
        return name

    yield make
    for path in reversed(paths):
        world.api.delete(path)


def test_the_shadow_pod_is_placed_as_the_mount_says(world: World, node: str, made: Make) -> None:
    low = made(PRIORITIES, value=-10)
    runc = made(RUNTIMES, handler="runc")
    pod = world.pod("notebook", node=node)
    mount = world.mount(
        "gpu",
        pod,
        reservation={
            "schedulerName": "default-scheduler",
            "runtimeClassName": runc,
            "priorityClassName": low,
            "annotations": {QUEUE: "research"},
        },
    ).ready()
    (shadow,) = mount.shadow_pods()
    assert shadow["metadata"]["annotations"][QUEUE] == "research"
    spec = shadow["spec"]
    assert (spec["runtimeClassName"], spec["priorityClassName"]) == (runc, low)
    assert spec["priority"] == -10
    assert len(pod.openable()) == 1
    mount.delete()


@pytest.mark.parametrize("forbidden", ["priority", "annotation"])
def test_what_a_mount_may_not_say_costs_no_pod(world: World, made: Make, forbidden: str) -> None:
    high = made(PRIORITIES, value=10)
    key = "volcano.sh/devices-to-allocate"
    reservation: Object = {
        "priority": {"priorityClassName": high},
        "annotation": {"annotations": {key: "every one of them"}},
    }[forbidden]
    mount = world.mount("gpu", world.pod("notebook"), reservation=reservation)
    message = mount.not_ready("ReservationNotAllowed")
    assert (high if forbidden == "priority" else key) in message
    assert mount.shadow_pods() == []


def test_devices_of_a_dra_driver_are_given_back(world: World, node: str, made: Make) -> None:
    """The scheduler answers with a claim where a DeviceClass takes an extended resource over."""
    driver = f"{world.namespace}.dra.devicemount.test"
    resource = f"{driver}/card"
    match = {"cel": {"expression": f"device.driver == '{driver}'"}}
    made(CLASSES, spec={"extendedResourceName": resource, "selectors": [match]})
    made(
        SLICES,
        spec={
            "driver": driver,
            "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "card-0"}],
        },
    )
    mount = world.mount("card", world.pod("notebook", node=node), resource=resource)
    assert "ResourceClaim" in mount.not_ready("AllocatedByDRA")
    assert mount.shadow_pods() == []
    mount.delete()
