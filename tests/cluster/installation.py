# SPDX-License-Identifier: Apache-2.0
"""An administrator who installs and removes devicemount by the documents, and knows no more."""

import logging
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cluster import inventory
from cluster.pages import DOCS, blocks
from cluster.world import SYSTEM, VCS, Mount, Pod, World, eventually
from devicemount_testbed import topology
from devicemount_testbed.api import Api
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.images import IMAGES, write_release

ROOT = DOCS.parent
PAGE = DOCS / "install.md"
README = ROOT / "README.md"
NODES = tuple(node.name for node in topology.NODES)
TIMEOUT_S = 180
READY_S = 60.0
# What a site adds to have devices without a plugin of their own: the testbed's.
DEVICES = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: devicemount-system
resources: [devicemount/manifests/overlays/default]
configMapGenerator:
- {name: devicemount-plugin, behavior: replace, files: [plugin.yaml]}
"""

log = logging.getLogger(__name__)


def documented(*words: str, page: Path = PAGE) -> str:
    """Return the page's one block of commands with these words."""
    runnable = [b.script for b in blocks(page) if not b.not_run]
    (script,) = (s for s in runnable if all(word in s for word in words))
    return script


INSTALL = documented("apply", page=README)
LEND = documented("kubectl label nodes --all", "rollout status")
REMOVE = documented("kubectl delete devicemounts", "delete -f manifests/install.yaml")
INSTALL_AGAIN = documented("kubectl apply -f", "rollout status")
WHO_LEADS = documented("get lease")
CLEAN_NODE = documented("rm -rf")
AFTER_CRD = "".join(REMOVE.splitlines(keepends=True)[2:])


def make_overlay(directory: Path, *, on: str = "default", more: str = "") -> None:
    """Write a site's own kustomization on one of the overlays."""
    devices = DEVICES.replace("overlays/default", f"overlays/{on}")
    (directory / "kustomization.yaml").write_text(devices + more)
    (directory / "devicemount").symlink_to(ROOT)
    plugin = ROOT / "manifests/overlays/testbed/plugin-config.yaml"
    (directory / "plugin.yaml").write_text(plugin.read_text())


@dataclass(frozen=True)
class Site:
    """An administrator's terminal, and a tenant's pods that run all the time, one on each node."""

    testbed: Testbed
    api: Api
    tenant: World
    overlay: Path
    pods: Mapping[str, Pod]
    first: str = INSTALL
    ran: list[str] = field(default_factory=list)  # what was pasted, here or on the nodes

    def run(self, script: str) -> None:
        """Run commands as the documents have them."""
        self.ran.append(script)
        environment = self.testbed.kubectl_environment
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env={**environment, "PATH": f"{self.testbed.layout.bin}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"

    def install(self) -> None:
        """Install, lend the nodes, say what devices they have: all is Ready within a minute."""
        began = time.monotonic()
        self.run(self.first.replace("NODE", " ".join(NODES)))
        self.run(f"kubectl apply --kustomize {self.overlay}")
        self.run(LEND)
        for node in NODES:
            eventually(partial(self.offers, node), what=f"{node} offers devices")
        ready_s = time.monotonic() - began
        log.info("ready_s=%.0f", ready_s)
        assert ready_s < READY_S

    def offers(self, node: str) -> bool:
        allocatable = self.api.call("GET", f"/api/v1/nodes/{node}")["status"]["allocatable"]
        return bool(allocatable.get(VCS) == "4")

    def mounted(self) -> list[Mount]:
        """Mount a device on each node."""
        made = [self.tenant.mount(node, pod) for node, pod in self.pods.items()]
        for mount in made:
            mount.ready()
            assert self.opened(mount)
        return made

    def opened(self, mount: Mount) -> set[str]:
        """Return which devices open in the target container of a mount that `mounted` made."""
        return self.pods[mount.name].openable()

    def clean_nodes(self) -> None:
        """Remove what stays until a node's next boot."""
        self.ran.append(CLEAN_NODE)
        own = CLEAN_NODE.replace("/etc/cdi", "/var/lib/cdi")  # by manifests/overlays/testbed
        for node in NODES:  # a directory that is not there, or not empty, is named and left
            self.testbed.exec(node, ["sh", "-c", f"{CLEAN_NODE}\n{own}"])

    def inventory(self) -> dict[str, inventory.Lines]:
        """Return all that there is, of nodes, API and the tenant's containers."""
        namespaces = ("default", "kube-system", SYSTEM, self.tenant.namespace)
        return {
            "api": inventory.of_api(self.testbed, self.api, namespaces=namespaces),
            **{n.name: inventory.of_node(self.testbed, self.api, n) for n in self.testbed.nodes},
            **{p.name: inventory.of_container(self.testbed, p) for p in self.pods.values()},
        }

    def untried(self) -> list[str]:
        """Return which of the page's commands nobody has pasted yet, and none says why."""
        tried = "".join(self.ran)
        return [str(b) for b in blocks(PAGE) if not b.not_run and b.script not in tried]

    def is_installed(self) -> bool:
        return self.api.get(f"/api/v1/namespaces/{SYSTEM}") is not None


def load_release(testbed: Testbed, directory: Path) -> list[str]:
    """Give every node the released images; return their names.

    `hold` by its archive, as a site without a registry does it. The others are many times as
    large, and there already by another name.
    """
    hold = [image for image in IMAGES if image.target == "hold"]
    archives = write_release(testbed.layout, ROOT, directory=directory, images=hold)
    ((name, archive),) = archives.items()
    version = name.rpartition(":")[2]
    tags = {i.reference: i.release_name(version) for i in IMAGES if i not in hold}
    ctr = ["ctr", "--namespace", "k8s.io", "images"]
    for node in NODES:
        commands = [["import", str(archive)], *(["tag", "--force", *t] for t in tags.items())]
        for command in commands:
            done = testbed.exec(node, [*ctr, *command])
            assert done.returncode == 0, done.stderr
    return [name, *tags.values()]
