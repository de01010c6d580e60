# SPDX-License-Identifier: Apache-2.0
"""A real kube-apiserver and etcd on free ports of 127.0.0.1, from the testbed's binaries. No
kubelet, no scheduler."""

import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from devicemount_testbed import pki

START_S = 60.0  # 4 s on an idle machine
LOCAL = "127.0.0.1"
OPERATOR = "system:serviceaccount:devicemount-system:devicemount-operator"

AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules: [{level: Metadata}]
"""


def binaries() -> Path:
    cache = os.environ.get("DEVICEMOUNT_CACHE") or Path.home() / ".cache" / "devicemount"
    return Path(cache) / "bin"


@dataclass(frozen=True)
class ControlPlane:
    kubeconfig: Path  # of an administrator: the test
    operator_kubeconfig: (
        Path  # of another one: what it asks for stands in the audit log under its name
    )
    audit_log: Path
    url: str
    authority: Path
    operator: pki.Pair


@contextmanager
def running(directory: Path) -> Iterator[ControlPlane]:
    """Run both until the block ends."""
    authority = pki.make_authority(directory, "ca")
    served = pki.issue(
        authority,
        subject=pki.Subject("kube-apiserver", (pki.SERVER,), addresses=(LOCAL,)),
        name="apiserver",
    )
    admin = pki.issue(
        authority,
        subject=pki.Subject("admin", (pki.CLIENT,), organization="system:masters"),
        name="admin",
    )
    operator = pki.issue(authority, subject=pki.Subject(OPERATOR, (pki.CLIENT,)), name="operator")
    signing = pki.make_signing_key(directory, "service-accounts")
    etcd_port, peer_port, port = free_ports(3)
    url = f"https://{LOCAL}:{port}"
    for name, client in (("admin", admin), ("operator", operator)):
        pki.write_kubeconfig(
            directory / f"{name}.kubeconfig",
            server=url,
            authority=authority.certificate,
            client=client,
        )
    policy, audit_log = directory / "audit-policy.yaml", directory / "audit.log"
    policy.write_text(AUDIT_POLICY)
    with ExitStack() as stack:
        etcd = f"http://{LOCAL}:{etcd_port}"
        peer = f"http://{LOCAL}:{peer_port}"
        _start(
            stack,
            directory / "etcd.log",
            "etcd",
            f"--data-dir={directory / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
        )
        server = _start(
            stack,
            directory / "kube-apiserver.log",
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            f"--bind-address={LOCAL}",
            f"--secure-port={port}",
            f"--tls-cert-file={served.certificate}",
            f"--tls-private-key-file={served.key}",
            f"--client-ca-file={authority.certificate}",
            f"--service-account-key-file={signing}",
            f"--service-account-signing-key-file={signing}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={audit_log}",
            "--disable-admission-plugins=ServiceAccount",  # nothing here makes default accounts
        )
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.load_cert_chain(admin.certificate, admin.key)
        _wait_ready(f"{url}/readyz", context, server, directory / "kube-apiserver.log")
        yield ControlPlane(
            directory / "admin.kubeconfig",
            directory / "operator.kubeconfig",
            audit_log,
            url,
            authority.certificate,
            operator,
        )


def _start(stack: ExitStack, log: Path, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
    output = stack.enter_context(log.open("wb"))
    process = subprocess.Popen(
        [binaries() / name, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    stack.callback(_end, process)
    return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_ready(
    url: str, context: ssl.SSLContext, server: "subprocess.Popen[bytes]", log: Path
) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, context=context, timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"the API server did not get ready:\n{log.read_text()[-3000:]}")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for bound in sockets:
            bound.bind((LOCAL, 0))
        return [bound.getsockname()[1] for bound in sockets]
