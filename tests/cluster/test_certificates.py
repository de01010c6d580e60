# SPDX-License-Identifier: Apache-2.0
"""Certificates and authorities change under mounts, and none fails: by default, and cert-manager's.

It changes to cert-manager and back by the page's commands; conftest.py lets it run late.
The kubelet brings a changed Secret within a minute or two; a change of a pod makes it look at once.
"""

import base64
import itertools
import logging
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from cluster.pages import DOCS, blocks
from cluster.world import SYSTEM, Mount, Pod, World, eventually
from devicemount_agent_api.identity import is_signed_by
from devicemount_testbed import cert_manager
from devicemount_testbed.api import Api, Object, pod_path
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.deploy import OVERLAY, deploy
from devicemount_testbed.locking import exclusive

ROOT = Path(__file__).parents[2]
WITH_CERT_MANAGER = "manifests/overlays/testbed-cert-manager"
OPERATOR, AGENT, AUTHORITY = (
    "devicemount-operator-tls",
    "devicemount-agent-tls",
    "devicemount-ca-tls",
)
RIGHT_TO_SECRETS = "devicemount-operator-certificates"
READY_S = 60
ROLLOUT_S = 120
CHANGE_S = 90.0
SERVED = "import ssl, sys; print(ssl.get_server_certificate((sys.argv[1], 9443)))"
CERTIFICATES = f"/apis/cert-manager.io/v1/namespaces/{SYSTEM}/certificates"
NODES = ("node1", "node2")

log = logging.getLogger(__name__)


class Cluster:
    """What an administrator sees of the certificates, and does to them."""

    def __init__(self, testbed: Testbed, api: Api) -> None:
        self.testbed = testbed
        self.api = api

    def secret(self, name: str) -> dict[str, bytes] | None:
        found = self.api.get(f"/api/v1/namespaces/{SYSTEM}/secrets/{name}")
        return found and {key: base64.b64decode(value) for key, value in found["data"].items()}

    def leaf(self, name: str) -> x509.Certificate | None:
        data = self.secret(name)
        return data and x509.load_pem_x509_certificate(data["tls.crt"])

    def trusted(self, name: str) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates((self.secret(name) or {"ca.crt": b""})["ca.crt"])

    def delete(self, name: str) -> None:
        self.api.delete(f"/api/v1/namespaces/{SYSTEM}/secrets/{name}")

    def pods(self, component: str) -> list[Object]:
        path = f"{pod_path(SYSTEM)}?labelSelector=app.kubernetes.io/component%3D{component}"
        found = self.api.call("GET", path)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def processes(self) -> set[str]:
        """Return what changes when any of it is restarted."""
        return {
            f"{pod['metadata']['name']} {status['containerID']}"
            for component in ("operator", "agent")
            for pod in self.pods(component)
            for status in pod["status"]["containerStatuses"]
        }

    def hasten(self) -> None:
        """Make the kubelets look at their pods, and so at the Secrets that these mount."""
        mark = f"testbed.devicemount.io/looked-at={secrets.token_hex(4)}"
        selector = "app.kubernetes.io/component in (agent, operator)"
        self.testbed.kubectl(
            "annotate", "pods", "--overwrite", f"--namespace={SYSTEM}", f"-l{selector}", mark
        )

    def served(self) -> list[x509.Certificate]:
        """Return what each agent shows to whoever connects."""
        shown = []
        for pod in self.pods("agent"):
            argv = [sys.executable, "-c", SERVED, pod["status"]["podIP"]]
            done = subprocess.run(
                self.testbed.in_control_netns(argv), capture_output=True, check=True, timeout=10
            )
            shown.append(x509.load_pem_x509_certificate(done.stdout))
        return shown

    def delivered_to_operators(self) -> set[bytes]:
        path = "/etc/devicemount/tls/tls.crt"
        names = [pod["metadata"]["name"] for pod in self.pods("operator")]
        return {
            self.testbed.kubectl("exec", "-n", SYSTEM, name, "--", "cat", path).encode()
            for name in names
        }

    def renew(self, *names: str) -> None:
        """Do as `cmctl renew`, and wait until new ones are there."""
        before = {}
        for name in names:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            path = f"{CERTIFICATES}/{name}"
            found = self.api.call("GET", path)
            before[name] = found["status"]["revision"]
            found["status"]["conditions"].append(
                {
                    "type": "Issuing",
                    "status": "True",
                    "reason": "ManuallyTriggered",
                    "message": "by a test",
                    "lastTransitionTime": now,
                }
            )
            self.api.call("PUT", f"{path}/status", found)
        for name in names:
            self.api.until(
                f"{CERTIFICATES}/{name}",
                lambda found, old=before[name]: bool(found and found["status"]["revision"] > old),
                deadline_s=30,
                what="renewed",
            )

    def follow(self, script: str, *, overlay: Path) -> None:
        """Run commands as the page has them, but for the overlay, and wait until all is Ready."""
        before, apply, after = re.split(r"^(kubectl apply -k .*)$", script, flags=re.MULTILINE)
        assert apply
        self._run(before)
        with exclusive(self.testbed.layout):
            deploy(self.testbed.layout, ROOT, overlay=str(overlay))
        self._run(after)
        for workload in ("deployment/devicemount-operator", "daemonset/devicemount-agent"):
            timeout = f"--timeout={ROLLOUT_S}s"
            self.testbed.kubectl("rollout", "status", f"--namespace={SYSTEM}", workload, timeout)

    def _run(self, script: str) -> None:
        environment = self.testbed.kubectl_environment
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env={**environment, "PATH": f"{self.testbed.layout.bin}:{environment['PATH']}"},
            check=True,
            timeout=ROLLOUT_S,
        )


@pytest.fixture
def cluster(testbed: Testbed, api: Api) -> Cluster:
    return Cluster(testbed, api)


@contextmanager
def mounting_all_the_time(world: World, *, pause_s: float = 0.0) -> Iterator[list[float]]:
    """Mount and unmount on both nodes until the block ends; yield how long each mount took.

    No call to an agent may fail; a DeviceMount that stays in each pod is still Ready and usable.
    """
    took: list[float] = []
    failed: list[str] = []
    stop = threading.Event()
    pods = {node: world.pod(f"notebook-{node}", node=node) for node in NODES}
    said_before = len(world.operator_log())
    stays = {node: world.mount(f"stays-{node}", pod).ready() for node, pod in pods.items()}

    def borrow(node: str) -> None:
        mine = World(world.testbed, Api(world.testbed.kubeconfig), world.namespace)
        try:
            for turn in itertools.count():
                if stop.wait(pause_s):
                    return
                began = time.monotonic()
                mount = mine.mount(f"{node}-{turn}", pods[node]).ready()
                took.append(time.monotonic() - began)
                mount.delete()
        except Exception as error:  # noqa: BLE001  (told below, in the test's own thread)
            failed.append(f"{node}: {error!r}")

    threads = [threading.Thread(target=borrow, args=(node,)) for node in NODES]
    for thread in threads:
        thread.start()
    try:
        yield took
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    said = world.operator_log()[said_before:]
    assert not failed, (failed, said)
    assert "AgentUnavailable" not in said, said
    assert "does not answer" not in said, said
    for node, mount in stays.items():
        _still_granted(mount, pods[node])


def _still_granted(mount: Mount, pod: Pod) -> None:
    mount.ready(0)
    assert {path.rpartition("/")[2] for path in mount.files()} <= pod.openable()
    mount.delete()


def test_own_certificates_and_a_new_authority_of_its_own_take_over(
    world: World, cluster: Cluster
) -> None:
    processes, (former,) = cluster.processes(), cluster.trusted(AGENT)

    def agents_follow() -> bool:
        cluster.hasten()
        return set(cluster.served()) == {cluster.leaf(AGENT)}

    def is_settled() -> bool:
        cluster.hasten()
        trusted, leaf = cluster.trusted(OPERATOR), cluster.leaf(OPERATOR)
        return (
            former not in trusted
            and trusted == cluster.trusted(AGENT)
            and leaf is not None
            and is_signed_by(leaf, trusted[0])
        )

    with mounting_all_the_time(world) as took:
        cluster.delete(OPERATOR)  # the agents' own, lost: tests/component/operator
        eventually(lambda: former != cluster.trusted(AGENT)[0], what="a new authority is made")
        eventually(is_settled, what="the former authority is forgotten", deadline_s=CHANGE_S)
        eventually(agents_follow, what="agents show it", deadline_s=CHANGE_S)
    assert cluster.processes() == processes
    log.info("mounts=%d slowest_s=%.1f", len(took), max(took))


@contextmanager
def by_cert_manager(cluster: Cluster, *, overlay: Path) -> Iterator[float]:
    """Change to cert-manager's certificates as the page says, and back at the end.

    Yield how many seconds it took until all was Ready.
    """
    there, back = (b.script for b in blocks(DOCS / "certificates.md") if not b.not_run)
    with cert_manager.running(cluster.testbed, namespace=SYSTEM):
        try:
            began = time.monotonic()
            cluster.follow(there, overlay=overlay)
            yield time.monotonic() - began
        finally:
            cluster.follow(back, overlay=ROOT / OVERLAY)


def test_with_cert_manager_all_is_ready_in_a_minute_and_no_change_fails_a_mount(
    world: World, cluster: Cluster
) -> None:
    pod = world.pod("notebook", node=NODES[0])
    stays = world.mount("stays", pod).ready()
    with by_cert_manager(cluster, overlay=ROOT / WITH_CERT_MANAGER) as ready_s:
        log.info("ready_s=%.0f", ready_s)
        assert ready_s < READY_S
        right = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{SYSTEM}/roles/{RIGHT_TO_SECRETS}"
        assert cluster.api.get(right) is None
        authority = cluster.leaf(AUTHORITY)
        assert all(is_signed_by(one, authority) for one in map(cluster.leaf, (OPERATOR, AGENT)))
        _changes_under_mounts(world, cluster)
    stays.ready()
    _still_granted(stays, pod)


def _changes_under_mounts(world: World, cluster: Cluster) -> None:
    leaves, processes = ("devicemount-operator", "devicemount-agent"), cluster.processes()
    (former,) = cluster.trusted(AGENT)

    def operator_has_read() -> bool:
        cluster.hasten()
        return cluster.delivered_to_operators() == {(cluster.secret(OPERATOR) or {})["tls.crt"]}

    def agents_follow() -> bool:
        return set(cluster.served()) == {cluster.leaf(AGENT)}

    with mounting_all_the_time(world) as took:
        cluster.renew(*leaves)
        eventually(operator_has_read, what="the operator's is delivered", deadline_s=CHANGE_S)
        eventually(agents_follow, what="agents show theirs", deadline_s=CHANGE_S)
        cluster.delete(AUTHORITY)  # a new one has another key
        eventually(lambda: cluster.leaf(AUTHORITY) is not None, what="a new authority is made")
        cluster.renew(*leaves)
        assert former not in cluster.trusted(AGENT)
        eventually(operator_has_read, what="the operator's is delivered", deadline_s=CHANGE_S)
        more = len(took) + 10
        eventually(lambda: len(took) >= more, what="ten more mounts")
    assert cluster.processes() == processes
    log.info("mounts=%d slowest_s=%.1f", len(took), max(took))
