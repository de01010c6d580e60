# SPDX-License-Identifier: Apache-2.0
"""The running testbed is a real cluster of two nodes, one for each cgroup version."""

import json
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicemount_testbed.cluster import Testbed
from devicemount_testbed.topology import CgroupVersion

NODES = ("node1", "node2")
POD = """\
apiVersion: v1
kind: Pod
metadata: {{name: {node}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: busybox, image: "localhost/busybox:1", imagePullPolicy: Never}}
  - {{name: target, image: "localhost/scratch-target:1", imagePullPolicy: Never}}
---
"""


@pytest.fixture(scope="module")
def testbed() -> Testbed:
    return Testbed.from_record()


@pytest.fixture(scope="module")
def namespace(testbed: Testbed) -> Iterator[str]:
    """A namespace with one pod on each node, both running."""
    name = f"testbed-{uuid.uuid4().hex[:8]}"
    testbed.kubectl("create", "namespace", name)
    try:
        # the controller manager makes the account a moment later; pods are refused before
        account = "serviceaccount/default"
        testbed.kubectl("wait", "-n", name, "--for=create", account, "--timeout=30s")
        pods = "".join(POD.format(node=node) for node in NODES)
        testbed.kubectl("apply", "-n", name, "-f", "-", input=pods)
        testbed.kubectl(
            "wait", "-n", name, "--for=condition=Ready", "pod", "--all", "--timeout=60s"
        )
        yield name
    finally:
        testbed.kubectl("delete", "namespace", name, "--wait=false")


def test_both_nodes_are_ready_with_the_same_kubernetes(testbed: Testbed) -> None:
    nodes = json.loads(testbed.kubectl("get", "nodes", "-o", "json"))["items"]
    assert [node["metadata"]["name"] for node in nodes] == list(NODES)
    for node in nodes:
        (ready,) = [c for c in node["status"]["conditions"] if c["type"] == "Ready"]
        assert ready["status"] == "True"
        assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.37.2"
        assert node["status"]["allocatable"]["pods"] == "500"


def test_each_node_uses_its_cgroup_version(testbed: Testbed, namespace: str) -> None:
    for node in testbed.nodes:
        kind = testbed.exec(node, ["stat", "-fc", "%T", "/sys/fs/cgroup"]).stdout.strip()
        lines = testbed.kubectl(
            "exec", "-n", namespace, node.name, "-c", "busybox", "--", "cat", "/proc/1/cgroup"
        ).splitlines()
        devices = [line for line in lines if ":devices:" in line]
        match node.cgroup:
            case CgroupVersion.V1:
                assert kind == "tmpfs"
                assert f":devices:/{node.cgroup_name}/kubepods/" in devices[0]
            case CgroupVersion.V2:
                assert kind == "cgroup2fs"
                assert "/kubepods/" not in devices[0]


@pytest.mark.parametrize("node", NODES)
def test_the_device_filter_of_a_container_is_real(
    testbed: Testbed, namespace: str, node: str
) -> None:
    script = "mknod /tmp/vcs1 c 7 1 && dd if=/tmp/vcs1 bs=1 count=1"
    with pytest.raises(Exception, match="Operation not permitted"):
        testbed.kubectl("exec", "-n", namespace, node, "-c", "busybox", "--", "sh", "-c", script)


@pytest.mark.parametrize("node", NODES)
def test_the_scratch_target_opens_when_told(testbed: Testbed, namespace: str, node: str) -> None:
    out = testbed.kubectl(
        "exec", "-n", namespace, node, "-c", "target", "--", "/target", "open", "/dev/null"
    )
    assert out == "/dev/null ok\n"


def test_pods_reach_each_other_and_the_api_server(testbed: Testbed, namespace: str) -> None:
    address = testbed.kubectl(
        "get", "pod", "-n", namespace, "node2", "-o", "jsonpath={.status.podIP}"
    )
    script = f"ping -c 1 -W 5 {address} && nc -w 5 10.96.0.1 443 </dev/null"
    testbed.kubectl("exec", "-n", namespace, "node1", "-c", "busybox", "--", "sh", "-c", script)


@pytest.mark.parametrize("node", NODES)
def test_a_node_has_a_dev_and_a_run_of_its_own(testbed: Testbed, node: str) -> None:
    devices = testbed.exec(node, ["ls", "/dev"]).stdout.split()
    assert {"loop0", "loop3", "vcs", "vcs1", "vcsa1", "vcsu1", "fuse"} <= set(devices)
    assert not {"loop4", "vcs2", "vda", "sda"} & set(devices)
    root = testbed.node_root(node)
    assert (root / "run/containerd/containerd.sock").is_socket()
    assert (root / "var/lib/kubelet/device-plugins/kubelet.sock").is_socket()
    assert testbed.exec(node, ["hostname"]).stdout.strip() == node


def test_the_api_server_is_reached_over_loopback_only(testbed: Testbed) -> None:
    assert f"https://127.0.0.1:{testbed.record.relay_port}" in testbed.kubeconfig.read_text()
    port = f"{testbed.record.relay_port:04X}"
    listening = [
        line.split()[1]
        for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port}")
    ]
    assert listening == [f"0100007F:{port}"]
    certificate = ssl.get_server_certificate(("127.0.0.1", testbed.record.relay_port))
    assert certificate.startswith("-----BEGIN CERTIFICATE-----")


def test_nothing_of_it_is_in_the_machines_own_network() -> None:
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    assert not [link for link in links if link.startswith(("dmtb-", "cni"))]
