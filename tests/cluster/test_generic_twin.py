# SPDX-License-Identifier: Apache-2.0
"""A device by DeviceMount is what it is by the pod's own limits: nodes, owners, and open's answers.

Pod A has the device from its start, by kubelet and runtime; pod B gets it while it runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cluster.borrowing import apply, await_allocatable, borrow, condition, delete, look, opens
from cluster.world import World
from devicemount_node_api import deviceplugin_pb2 as pb
from devicemount_testbed.api import Object, pod_path
from devicemount_testbed.cluster import Testbed
from vendors.node import node_files
from vendors.plugin import StandIn, registered

RESOURCE = "twin.example.com/device"
NO_PERMISSIONS = "twin.example.com/no-permissions"
MAJOR = 240  # for local use, says Linux' list of devices; nothing is registered under it here
PERMISSIONS = {"r": "r", "rw": "rw", "w": "w", "mrw": "mrw"}


@dataclass(frozen=True)
class Twins:
    node: str


def _answer(ids: list[str]) -> pb.ContainerAllocateResponse:
    one_by_one = [
        pb.DeviceSpec(
            container_path=f"/dev/twin/{name}", host_path=f"/dev/twin/{name}", permissions=given
        )
        for name, given in PERMISSIONS.items()
    ]
    renamed = pb.DeviceSpec(
        container_path="/dev/camera", host_path="/dev/twin/renamed", permissions="rw"
    )
    directory = pb.DeviceSpec(
        container_path="/dev/bundle", host_path="/dev/twin/bundle", permissions="rw"
    )
    return pb.ContainerAllocateResponse(devices=[*one_by_one, renamed, directory])


def _answer_without_permissions(ids: list[str]) -> pb.ContainerAllocateResponse:
    spec = pb.DeviceSpec(container_path="/dev/twin/rw", host_path="/dev/twin/rw")
    return pb.ContainerAllocateResponse(devices=[spec])


@pytest.fixture(scope="module", params=["node1", "node2"])
def twins(request: pytest.FixtureRequest, testbed: Testbed) -> Iterator[Twins]:
    """A node with devices of every kind of answer, and a plugin that has two of them to give."""
    node = str(request.param)
    names = [*PERMISSIONS, "renamed", "bundle/one", "bundle/below/two"]
    with node_files(testbed, node) as files:
        for minor, name in enumerate(names):
            files.device(
                {
                    "path": f"/dev/twin/{name}",
                    "major": MAJOR,
                    "minor": minor,
                    "mode": "0640",
                    "uid": 0,
                    "gid": 44,
                }
            )
        ids = ("one", "two")
        silent = StandIn(NO_PERMISSIONS, ids, _answer_without_permissions)
        with registered(testbed, node, StandIn(RESOURCE, ids, _answer), silent):
            yield Twins(node)


@pytest.mark.parametrize("user", [0, 1000], ids=["as root", "as a user"])
def test_a_device_is_the_same_by_limits_and_by_mount(world: World, twins: Twins, user: int) -> None:
    await_allocatable(world, twins.node, {RESOURCE: 2})
    security = {"securityContext": {"runAsUser": user}}
    plain = world.pod("plain", node=twins.node, **security)
    born = world.pod("born", node=twins.node, limits={RESOURCE: 1}, **security)
    loan = borrow(world, plain, {RESOURCE: 1})

    by_limits = {p: n for p, n in look(born).nodes.items() if p not in loan.before.nodes}
    assert len(by_limits) == len(PERMISSIONS) + 3
    assert loan.came.nodes == by_limits
    assert opens(plain, by_limits) == opens(born, by_limits)
    said = condition(loan.mount, "Degraded")
    if user:
        assert (said["status"], said["reason"]) == ("True", "NotPermitted")
        assert f"user {user} " in said["message"]
        assert "(0:44, 0640)" in said["message"]
    else:
        assert said == {}
    delete(loan.mount)
    assert look(plain) == loan.before


def test_a_device_without_permissions_is_none_by_either_way(world: World, twins: Twins) -> None:
    """The runtime does not start a container with such a device."""
    await_allocatable(world, twins.node, {NO_PERMISSIONS: 2})
    plain = world.pod("plain", node=twins.node)
    container = {
        "name": "main",
        "image": "localhost/busybox:1",
        "resources": {"limits": {NO_PERMISSIONS: 1}},
    }
    spec = {"nodeName": twins.node, "restartPolicy": "Never", "containers": [container]}
    born = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "born"}, "spec": spec}
    path = pod_path(world.namespace, "born")
    world.api.call("POST", pod_path(world.namespace), born)
    failed = world.api.until(path, has_failed, deadline_s=30, what="failed")
    assert failed is not None
    ended = failed["status"]["containerStatuses"][0]["state"]["terminated"]
    assert "device access" in ended["message"]
    world.api.delete(path, {"gracePeriodSeconds": 0})

    before = look(plain)
    mount = apply(world, plain, {NO_PERMISSIONS: 1})
    assert "/dev/twin/rw" in mount.not_ready("AllocationUnknown")
    assert look(plain) == before


def has_failed(found: Object | None) -> bool:
    return (found or {}).get("status", {}).get("phase") == "Failed"
