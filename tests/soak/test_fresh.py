# SPDX-License-Identifier: Apache-2.0
"""Installed on an empty testbed, as on a site's first day, and removed again.

It starts testbeds of its own and leaves one that runs; conftest.py lets it run last.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.installation import INSTALL, NODES, REMOVE, ROOT, Site, make_overlay
from cluster.world import SYSTEM, World, eventually
from devicemount_testbed import cert_manager
from devicemount_testbed.api import Api
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.deploy import deploy
from devicemount_testbed.images import build_images, write_release
from devicemount_testbed.layout import default_layout
from devicemount_testbed.lifecycle import down, up
from devicemount_testbed.loading import load_everywhere
from devicemount_testbed.locking import exclusive
from devicemount_testbed.node import KUBELET_ROOT

MOVED = "/var/lib/elsewhere"
PATCH = f"""
patches:
- patch: |-
    apiVersion: apps/v1
    kind: DaemonSet
    metadata: {{name: devicemount-agent, namespace: devicemount-system}}
    spec:
      template:
        spec:
          volumes:
          - {{name: pod-resources, hostPath: {{path: {MOVED}/pod-resources}}}}
"""


INSTALL_WITH_CERT_MANAGER = INSTALL.replace(
    "-f manifests/install.yaml", "-k manifests/overlays/cert-manager"
)


@pytest.fixture(params=["usual", "moved", "cert-manager"])
def empty(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """A testbed where nothing of ours ever was: as usual, with the kubelet's root directory
    elsewhere, with cert-manager."""
    layout, is_moved = default_layout(), request.param == "moved"
    down(layout)
    with monkeypatch.context() as changed:
        changed.setenv("DEVICEMOUNT_KUBELET_ROOT", MOVED if is_moved else KUBELET_ROOT)
        up(layout)
    testbed = Testbed.from_record(layout)
    api = Api(testbed.kubeconfig)
    with exclusive(layout):
        build_images(layout, ROOT)
        archives = write_release(layout, ROOT, directory=tmp_path)
        load_everywhere(testbed, list(archives.values()))
    api.make_namespace("tenant")
    tenant = World(testbed, api, "tenant")
    pods = {node: tenant.pod(f"notebook-{node}", node=node) for node in NODES}
    if request.param == "cert-manager":
        make_overlay(tmp_path, on="cert-manager")
        with cert_manager.running(testbed, namespace=SYSTEM):
            yield Site(testbed, api, tenant, tmp_path, pods, first=INSTALL_WITH_CERT_MANAGER)
    else:
        make_overlay(tmp_path, more=PATCH if is_moved else "")
        yield Site(testbed, api, tenant, tmp_path, pods)
    down(layout)
    up(layout)
    with exclusive(layout):
        deploy(layout, ROOT)


def test_an_empty_cluster_is_as_before_when_it_is_removed(empty: Site) -> None:
    for pod in empty.pods.values():
        pod.openable()  # makes the files by which it asks
    before = empty.inventory()
    empty.install()
    first, *others = empty.mounted()
    first.delete()
    empty.run(REMOVE)
    assert not any(empty.opened(mount) for mount in others)
    empty.clean_nodes()
    eventually(lambda: empty.inventory() == before, what="everything is as before")
    assert empty.inventory() == before
