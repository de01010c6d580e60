# SPDX-License-Identifier: Apache-2.0
"""The running testbed is a real cluster: a node for each cgroup version and cgroup driver."""

import json
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicemount_testbed.cluster import Testbed
from devicemount_testbed.devices import MANY, MANY_MAJOR
from devicemount_testbed.topology import NODES, CgroupDriver, CgroupVersion, Node

PLACES = [(node, runtime) for node in NODES for runtime in node.runtimes]
STATE = {"runc": "state.json", "crun": "status"}  # what each keeps of a container, by name
POD = """\
apiVersion: v1
kind: Pod
metadata: {{name: {node}-{runtime}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  {runtime_class}
  terminationGracePeriodSeconds: 0
  containers:
  - name: busybox
    image: "localhost/busybox:1"
    imagePullPolicy: Never
    resources: {{limits: {{testbed.devicemount.io/many: 1}}}}
  - {{name: target, image: "localhost/scratch-target:1", imagePullPolicy: Never}}
---
"""
on_each_node = pytest.mark.parametrize("node", NODES, ids=lambda node: node.name)
by_each_runtime = pytest.mark.parametrize(
    ("node", "runtime"), PLACES, ids=[f"{node.name}-{runtime}" for node, runtime in PLACES]
)


def pod(node: Node, runtime: str) -> str:
    chosen = "runtimeClassName: crun" if runtime == "crun" else ""
    return POD.format(node=node.name, runtime=runtime, runtime_class=chosen)


@pytest.fixture(scope="module")
def testbed() -> Testbed:
    return Testbed.from_record()


@pytest.fixture(scope="module")
def namespace(testbed: Testbed) -> Iterator[str]:
    """A namespace with a pod of each runtime on each node, all running."""
    name = f"testbed-{uuid.uuid4().hex[:8]}"
    testbed.kubectl("create", "namespace", name)
    try:
        # the controller manager makes the account a moment later; pods are refused before
        account = "serviceaccount/default"
        testbed.kubectl("wait", "-n", name, "--for=create", account, "--timeout=30s")
        pods = "".join(pod(node, runtime) for node, runtime in PLACES)
        testbed.kubectl("apply", "-n", name, "-f", "-", input=pods)
        testbed.kubectl(
            "wait", "-n", name, "--for=condition=Ready", "pod", "--all", "--timeout=60s"
        )
        yield name
    finally:
        testbed.kubectl("delete", "namespace", name, "--wait=false")


def run_in(testbed: Testbed, namespace: str, name: str, script: str) -> str:
    """Run a script in a pod's busybox; return what it said, whatever its exit status."""
    command = ["exec", "-n", namespace, name, "-c", "busybox", "--", "sh", "-c", script]
    return testbed.try_kubectl(*command)


def container_id(testbed: Testbed, namespace: str, node: Node, runtime: str) -> str:
    path = "jsonpath={.status.containerStatuses[?(@.name=='busybox')].containerID}"
    name = f"{node.name}-{runtime}"
    return testbed.kubectl("get", "pod", "-n", namespace, name, "-o", path).removeprefix(
        "containerd://"
    )


def main_pid(testbed: Testbed, namespace: str, node: Node, runtime: str) -> int:
    """Return the pid, inside the node, of the container's main process."""
    wanted = container_id(testbed, namespace, node, runtime)
    tasks = testbed.exec(node, ["ctr", "-n", "k8s.io", "tasks", "ls"]).stdout.splitlines()
    (pid,) = [line.split()[1] for line in tasks if line.startswith(wanted)]
    return int(pid)


def test_the_nodes_are_ready_with_the_same_kubernetes(testbed: Testbed) -> None:
    nodes = json.loads(testbed.kubectl("get", "nodes", "-o", "json"))["items"]
    assert [node["metadata"]["name"] for node in nodes] == [node.name for node in NODES]
    for node in nodes:
        (ready,) = [c for c in node["status"]["conditions"] if c["type"] == "Ready"]
        assert ready["status"] == "True"
        assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.37.2"
        assert node["status"]["allocatable"]["pods"] == "500"


@by_each_runtime
def test_a_container_is_in_the_cgroup_of_its_nodes_kind(
    testbed: Testbed, namespace: str, node: Node, runtime: str
) -> None:
    kind = testbed.exec(node, ["stat", "-fc", "%T", "/sys/fs/cgroup"]).stdout.strip()
    assert kind == {CgroupVersion.V1: "tmpfs", CgroupVersion.V2: "cgroup2fs"}[node.cgroup]
    lines = testbed.exec(
        node, ["cat", f"/proc/{main_pid(testbed, namespace, node, runtime)}/cgroup"]
    )
    hierarchy = {CgroupVersion.V1: ":devices:", CgroupVersion.V2: "0::"}[node.cgroup]
    (path,) = [
        line.partition(hierarchy)[2] for line in lines.stdout.splitlines() if hierarchy in line
    ]
    match node.driver:
        case CgroupDriver.CGROUPFS:
            assert path.startswith(f"/{node.cgroup_name}/kubepods/besteffort/pod")
        case CgroupDriver.SYSTEMD:
            assert path.startswith("/kubepods.slice/kubepods-besteffort.slice/")
            assert (
                f"/cri-containerd-{container_id(testbed, namespace, node, runtime)}.scope" in path
            )


@by_each_runtime
def test_a_pod_runs_by_the_runtime_that_it_names(
    testbed: Testbed, namespace: str, node: Node, runtime: str
) -> None:
    kept = testbed.node_root(node) / "run/containerd/runc/k8s.io"
    directory = kept / container_id(testbed, namespace, node, runtime)
    assert {name for name in STATE if (directory / STATE[name]).exists()} == {runtime}


def test_the_record_says_which_crun_runs(testbed: Testbed) -> None:
    said = testbed.exec("node3", ["crun", "--version"]).stdout
    assert said.startswith(f"crun version {testbed.record.crun}\n")


@by_each_runtime
def test_the_device_filter_of_a_container_is_real(
    testbed: Testbed, namespace: str, node: Node, runtime: str
) -> None:
    """Of many numbers that no driver has, exactly the one that the pod asked for is let through."""
    name = f"{node.name}-{runtime}"
    (own,) = run_in(testbed, namespace, name, "ls /dev | grep many").split()
    other = (int(own.removeprefix("many")) + 1) % MANY
    script = f"mknod /tmp/other c {MANY_MAJOR} {other}; dd if=/dev/{own}; dd if=/tmp/other"
    allowed, refused = run_in(testbed, namespace, name, script).splitlines()[:2]
    assert allowed.endswith("No such device or address")
    assert refused.endswith("Operation not permitted")


@by_each_runtime
def test_the_scratch_target_opens_when_told(
    testbed: Testbed, namespace: str, node: Node, runtime: str
) -> None:
    name = f"{node.name}-{runtime}"
    command = ["exec", "-n", namespace, name, "-c", "target", "--", "/target", "open", "/dev/null"]
    assert testbed.kubectl(*command) == "/dev/null ok\n"


def test_systemd_is_pid_1_of_the_node_with_its_driver_and_reloads(
    testbed: Testbed, namespace: str
) -> None:
    (node,) = [node for node in NODES if node.driver is CgroupDriver.SYSTEMD]
    assert testbed.exec(node, ["cat", "/proc/1/comm"]).stdout == "systemd\n"
    reloaded = testbed.exec(node, ["systemctl", "daemon-reload"])
    assert reloaded.returncode == 0, reloaded.stderr
    for runtime in node.runtimes:
        scope = f"cri-containerd-{container_id(testbed, namespace, node, runtime)}.scope"
        active = testbed.exec(node, ["systemctl", "is-active", scope])
        assert active.stdout == "active\n", active.stderr


def test_pods_reach_each_other_and_the_api_server(testbed: Testbed, namespace: str) -> None:
    path = "jsonpath={.items[*].status.podIP}"
    addresses = testbed.kubectl("get", "pods", "-n", namespace, "-o", path).split()
    assert len(addresses) == len(PLACES)
    pings = " && ".join(f"ping -c 1 -W 5 {address}" for address in addresses)
    script = f"{pings} && nc -w 5 10.96.0.1 443 </dev/null"
    for node in NODES:
        name = f"{node.name}-runc"
        command = ["exec", "-n", namespace, name, "-c", "busybox", "--", "sh", "-c", script]
        testbed.kubectl(*command)


@on_each_node
def test_a_node_has_a_dev_and_a_run_of_its_own(testbed: Testbed, node: Node) -> None:
    devices = testbed.exec(node, ["ls", "/dev"]).stdout.split()
    assert {"loop0", "loop3", "vcs", "vcs1", "vcsa1", "vcsu1", "fuse", "many255"} <= set(devices)
    assert not {"loop4", "vcs2", "vda", "sda"} & set(devices)
    root = testbed.node_root(node)
    assert (root / "run/containerd/containerd.sock").is_socket()
    assert (root / "var/lib/kubelet/device-plugins/kubelet.sock").is_socket()
    assert testbed.exec(node, ["hostname"]).stdout.strip() == node.name


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
