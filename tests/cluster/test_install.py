# SPDX-License-Identifier: Apache-2.0
"""Installed, lent nodes, removed by docs/install.md's commands, in the right order and in others.

It takes devicemount off the cluster and deploys it again at the end; conftest.py lets it run last.
"""

import re
import secrets
from collections.abc import Iterator

import pytest

from cluster.installation import (
    AFTER_CRD,
    INSTALL_AGAIN,
    NODES,
    REMOVE,
    ROOT,
    WHO_LEADS,
    Site,
    load_release,
    make_overlay,
)
from cluster.world import SYSTEM, Mount, World, eventually
from devicemount_agent_api.labels import ENABLED_LABEL, ENABLED_VALUE
from devicemount_testbed.api import Api, mount_path
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.deploy import deploy
from devicemount_testbed.locking import exclusive

CRD = "devicemounts.devicemount.io"
CRD_PATH = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD}"


@pytest.fixture(scope="module")
def site(testbed: Testbed, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A cluster whose nodes have the released images; as it was deployed again at the end."""
    overlay = tmp_path_factory.mktemp("site")
    make_overlay(overlay)
    names = load_release(testbed, overlay)
    namespace = f"test-{secrets.token_hex(4)}"
    api.make_namespace(namespace)
    tenant = World(testbed, api, namespace)
    pods = {node: tenant.pod(f"notebook-{node}", node=node) for node in NODES}
    yield Site(testbed, api, tenant, overlay, pods)
    with exclusive(testbed.layout):
        deploy(testbed.layout, ROOT)
    for mount in api.call("GET", mount_path(namespace))["items"]:  # of a test that failed
        Mount(tenant, mount["metadata"]["name"]).delete()
    api.delete(f"/api/v1/namespaces/{namespace}")
    for node in NODES:
        testbed.exec(node, ["ctr", "--namespace", "k8s.io", "images", "rm", *names])


def test_a_node_without_the_label_is_left_alone(world: World) -> None:
    """Nothing is revoked silently, and the label puts everything right again."""
    pod, node = world.pod("notebook", node="node2"), "node2"
    mount = world.mount("stays", pod).ready()
    opened = pod.openable()
    kubectl = world.testbed.kubectl
    lend = ["label", "node", node, f"{ENABLED_LABEL}={ENABLED_VALUE}", "--overwrite"]
    kubectl("label", "node", node, f"{ENABLED_LABEL}-")
    try:
        assert " ".join(["kubectl", *lend]) in mount.not_ready("NodeNotEnabled")
        assert pod.openable() == opened != set()
        assert len(mount.shadow_pods()) == 1
        other = world.mount("waits", pod)
        other.not_ready("NodeNotEnabled")
        assert not other.shadow_pods()
        kubectl("label", "node", node, f"{ENABLED_LABEL}=false")
    finally:
        kubectl(*lend)  # the command of the message, also where the label has another value
    mount.ready()
    other.ready()
    mount.delete()
    other.delete()
    assert pod.openable() == set()


def test_an_archive_brings_the_name_that_the_manifests_have(site: Site) -> None:
    manifest = (ROOT / "manifests/install.yaml").read_text()
    (name,) = set(re.findall(r"image: (\S*devicemount-hold:\S+)", manifest))
    for node in NODES:
        listed = site.testbed.exec(node, ["ctr", "-n", "k8s.io", "images", "ls", "--quiet"])
        assert name in listed.stdout.split()


def test_the_namespace_first_keeps_everything_until_it_is_installed_again(site: Site) -> None:
    """The operator before it, so that nobody gives anything back meanwhile, and all the rest."""
    mounts = site.mounted()
    site.run(f"kubectl -n {SYSTEM} delete deployment devicemount-operator --cascade=foreground")
    mounts[0].ask_delete()
    site.run("kubectl delete -f manifests/install.yaml --ignore-not-found --wait=false")
    eventually(
        lambda: (
            not site.is_installed()
            and all("deletionTimestamp" in mount.object()["metadata"] for mount in mounts)
        ),
        what="the namespace is gone, the DeviceMounts are to go with the CRD",
        deadline_s=60,
    )
    for mount in mounts:
        assert site.opened(mount)
        (shadow,) = mount.shadow_pods()
        assert "deletionTimestamp" not in shadow["metadata"], "the reservation stands"
    site.run(INSTALL_AGAIN)
    for mount in mounts:
        mount.gone()
        assert not site.opened(mount)
    assert not site.tenant.shadow_pods()
    eventually(lambda: site.api.get(CRD_PATH) is None, what="the CRD is gone too")
    site.run(INSTALL_AGAIN)
    assert site.api.get(CRD_PATH) is not None


def test_the_crd_first_gives_every_device_back(site: Site) -> None:
    site.install()
    mounts = site.mounted()
    site.run(f"kubectl delete crd {CRD} --timeout=60s")
    for mount in mounts:
        assert not site.opened(mount)
    assert not site.tenant.shadow_pods()
    site.run(AFTER_CRD)


def test_the_documented_order_leaves_nothing(site: Site) -> None:
    if site.is_installed():
        site.run(REMOVE)
    site.clean_nodes()
    eventually(lambda: not _traces(site), what="nothing of it is left")
    before = site.inventory()
    site.install()
    site.run(WHO_LEADS)
    first, *others = site.mounted()
    first.delete()
    assert not site.opened(first)
    site.run(REMOVE)
    assert not any(site.opened(mount) for mount in others)
    site.clean_nodes()
    eventually(lambda: not _traces(site), what="nothing of it is left")
    assert site.inventory() == before


def test_every_command_of_the_page_was_tried(site: Site) -> None:
    """By the tests above, so it means something only after all of them."""
    assert site.untried() == []


def _traces(site: Site) -> list[str]:
    """Return the lines of the inventory that show devicemount, or a pod that is gone."""
    found = site.inventory()
    lines = [*found["api"]["objects"], *found["api"]["offers"]]
    lines = [line for line in lines if "devicemount" in line]
    for node in NODES:
        parts = {name: part for name, part in found[node].items() if name != "processes"}
        lines += [line for part in parts.values() for line in part if "devicemount" in line]
        lines += parts["cgroups"]
    return lines
