# SPDX-License-Identifier: Apache-2.0
"""A namespace of its own for each scenario, and the invariants that must hold after it."""

import secrets
from collections.abc import Iterator
from functools import partial

import pytest

from cluster.failing import bystanding
from cluster.world import (
    FUSE,
    LOOP,
    MANY_DEVICES,
    SYSTEM,
    VCS,
    Pod,
    World,
    eventually,
)
from devicemount_testbed.api import Api, mount_path
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.devices import MANY
from devicemount_testbed.topology import NODES


@pytest.fixture(scope="session")
def testbed() -> Testbed:
    return Testbed.from_record()


@pytest.fixture(scope="session")
def api(testbed: Testbed) -> Api:
    return Api(testbed.kubeconfig)


@pytest.fixture
def world(testbed: Testbed, api: Api) -> Iterator[World]:
    """A namespace whose end must leave nothing: no device allocated, no finalizer that hangs."""
    namespace = f"test-{secrets.token_hex(4)}"
    path = api.make_namespace(namespace)
    made = World(testbed, api, namespace)
    yield made
    for pod in made.pods.values():
        if pod.object()["spec"]["containers"][0]["image"] == "localhost/busybox:1":
            pod.end_holders()
    for mount in api.call("GET", mount_path(namespace))["items"]:
        api.delete(mount_path(namespace, mount["metadata"]["name"]))
    eventually(
        lambda: not api.call("GET", mount_path(namespace))["items"] and not made.shadow_pods(),
        what=f"the DeviceMounts and shadow pods of {namespace} are gone (I1, I4)",
    )
    api.delete(path)


@pytest.fixture
def bystander(world: World) -> Iterator[Pod]:
    """A pod whose device, granted before, is opened all the time and must never be refused."""
    with bystanding(world) as pod:
        yield pod


@pytest.fixture(params=["node1", "node2"])
def node(request: pytest.FixtureRequest) -> str:
    """Run the scenario on cgroup v1 and on cgroup v2."""
    return str(request.param)


@pytest.fixture(params=[node.name for node in NODES])
def each_node(request: pytest.FixtureRequest) -> str:
    """Run the scenario with systemd's cgroup driver too."""
    return str(request.param)


@pytest.fixture(autouse=True, scope="session")
def _deployed(testbed: Testbed, api: Api) -> None:
    """Fail at once, and say why, where devicemount is not deployed: every scenario needs it."""
    for kind, name in (
        ("deployments", "devicemount-operator"),
        ("daemonsets", "devicemount-agent"),
        ("daemonsets", "devicemount-plugin"),
    ):
        assert api.get(f"/apis/apps/v1/namespaces/{SYSTEM}/{kind}/{name}"), (
            f"{name} is not deployed: run `make cluster`"
        )
    offered = dict.fromkeys((VCS, LOOP, FUSE), "4") | {MANY_DEVICES: str(MANY)}

    def offers(name: str) -> bool:
        allocatable = api.call("GET", f"/api/v1/nodes/{name}")["status"]["allocatable"]
        return {resource: allocatable.get(resource) for resource in offered} == offered

    for each in NODES:
        eventually(partial(offers, each.name), what=f"{each.name} offers the testbed's devices")


LAST = ("", "test_certificates.py", "test_install.py", "test_availability.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run last what takes devicemount off the cluster, and at the very end what stops the API
    server: controllers of Kubernetes need a minute after that, quota's above all."""
    items.sort(key=lambda item: LAST.index(item.path.name) if item.path.name in LAST else 0)
