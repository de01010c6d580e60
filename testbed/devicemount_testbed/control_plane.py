# SPDX-License-Identifier: Apache-2.0
"""etcd, API server, controller manager and scheduler in the control plane's network namespace.

This module knows their certificates and arguments; lifecycle starts and records them.
"""

from dataclasses import dataclass

from devicemount_testbed import pki
from devicemount_testbed.layout import DATA, Layout
from devicemount_testbed.network import entering
from devicemount_testbed.topology import (
    API_PORT,
    API_SERVICE_ADDRESS,
    CONTROL_ADDRESS,
    CONTROL_NETNS,
    NODES,
    SERVICE_CIDR,
    Node,
)

INSIDE_URL = f"https://{CONTROL_ADDRESS}:{API_PORT}"
ETCD_URL = "http://127.0.0.1:2379"
ETCD_PEER_URL = "http://127.0.0.1:2380"


@dataclass(frozen=True, slots=True)
class Component:
    """A process of the control plane: its name in record and logs, and how it is started."""

    name: str
    argv: tuple[str, ...]


def make_credentials(layout: Layout, *, outside_url: str) -> None:
    """Make every certificate and kubeconfig of the cluster, once for each run."""
    authority = pki.make_authority(layout.pki, "cluster-ca")
    pki.make_signing_key(layout.pki, "service-accounts")
    pki.issue(authority, subject=_api_server(), name="apiserver")
    pki.issue(authority, subject=_client("apiserver", "system:masters"), name="apiserver-kubelet")
    admin = pki.issue(authority, subject=_client("admin", "system:masters"), name="admin")
    pki.write_kubeconfig(
        layout.kubeconfig, server=outside_url, authority=authority.certificate, client=admin
    )
    for name in ("kube-controller-manager", "kube-scheduler"):
        client = pki.issue(authority, subject=_client(f"system:{name}"), name=name)
        _write_inside(layout, name=name, authority=authority, client=client)
    for node in NODES:
        kubelet = pki.issue(authority, subject=_kubelet(node), name=node.name)
        _write_inside(layout, name=node.name, authority=authority, client=kubelet)
    proxy = pki.issue(authority, subject=_client("system:kube-proxy"), name="kube-proxy")
    _write_inside(layout, name="kube-proxy", authority=authority, client=proxy)


def etcd(layout: Layout) -> Component:
    return _component(
        layout,
        "etcd",
        "--data-dir=" + str(layout.state / "etcd"),
        "--unsafe-no-fsync",  # nothing here outlives the machine
        f"--listen-client-urls={ETCD_URL}",
        f"--advertise-client-urls={ETCD_URL}",
        f"--listen-peer-urls={ETCD_PEER_URL}",
        "--log-level=warn",
    )


def api_server(layout: Layout) -> Component:
    served = pki.Pair.at(layout.pki, "apiserver")
    kubelet_client = pki.Pair.at(layout.pki, "apiserver-kubelet")
    authority = layout.pki / "cluster-ca.crt"
    return _component(
        layout,
        "kube-apiserver",
        f"--etcd-servers={ETCD_URL}",
        f"--advertise-address={CONTROL_ADDRESS}",
        f"--secure-port={API_PORT}",
        f"--tls-cert-file={served.certificate}",
        f"--tls-private-key-file={served.key}",
        f"--client-ca-file={authority}",
        f"--service-account-key-file={layout.pki / 'service-accounts.key'}",
        f"--service-account-signing-key-file={layout.pki / 'service-accounts.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--kubelet-client-certificate={kubelet_client.certificate}",
        f"--kubelet-client-key={kubelet_client.key}",
        f"--kubelet-certificate-authority={authority}",
        "--kubelet-preferred-address-types=InternalIP",  # nothing here resolves node names
        f"--audit-policy-file={DATA / 'audit-policy.yaml'}",
        f"--audit-log-path={layout.audit_log}",
        "--audit-log-maxsize=64",
        "--audit-log-maxbackup=1",
    )


def controller_manager(layout: Layout) -> Component:
    authority = pki.Pair.at(layout.pki, "cluster-ca")
    return _component(
        layout,
        "kube-controller-manager",
        f"--kubeconfig={inside_kubeconfig(layout, 'kube-controller-manager')}",
        f"--service-account-private-key-file={layout.pki / 'service-accounts.key'}",
        f"--root-ca-file={authority.certificate}",
        f"--cluster-signing-cert-file={authority.certificate}",
        f"--cluster-signing-key-file={authority.key}",
        "--use-service-account-credentials",
        "--leader-elect=false",
    )


def scheduler(layout: Layout) -> Component:
    return _component(
        layout,
        "kube-scheduler",
        f"--kubeconfig={inside_kubeconfig(layout, 'kube-scheduler')}",
        "--leader-elect=false",
    )


def inside_kubeconfig(layout: Layout, name: str) -> str:
    """The kubeconfig of a client inside the testbed's namespaces."""
    return str(layout.state / f"{name}.kubeconfig")


def _component(layout: Layout, name: str, *arguments: str) -> Component:
    argv = entering(CONTROL_NETNS, [str(layout.bin / name), *arguments])
    return Component(name=name, argv=tuple(argv))


def _write_inside(layout: Layout, *, name: str, authority: pki.Pair, client: pki.Pair) -> None:
    pki.write_kubeconfig(
        layout.state / f"{name}.kubeconfig",
        server=INSIDE_URL,
        authority=authority.certificate,
        client=client,
    )


def _api_server() -> pki.Subject:
    service = "kubernetes.default.svc"
    return pki.Subject(
        common_name="kube-apiserver",
        usages=(pki.SERVER,),
        dns_names=("localhost", "kubernetes", "kubernetes.default", service),
        addresses=("127.0.0.1", API_SERVICE_ADDRESS, CONTROL_ADDRESS),
    )


def _client(common_name: str, organization: str | None = None) -> pki.Subject:
    return pki.Subject(common_name=common_name, usages=(pki.CLIENT,), organization=organization)


def _kubelet(node: Node) -> pki.Subject:
    return pki.Subject(
        common_name=f"system:node:{node.name}",
        organization="system:nodes",
        usages=(pki.CLIENT, pki.SERVER),
        dns_names=(node.name,),
        addresses=(node.address,),
    )
