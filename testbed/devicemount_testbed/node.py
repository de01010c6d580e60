# SPDX-License-Identifier: Apache-2.0
"""One node: its files, the command that starts its namespaces, and the way into them.

What happens inside is data/node-start.sh, the node's PID 1, or where systemd is that,
data/node-systemd.sh and the units in data/systemd.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from string import Template

from devicemount_testbed.cgroups import unified_cgroup
from devicemount_testbed.control_plane import inside_kubeconfig
from devicemount_testbed.devices import write_devices
from devicemount_testbed.layout import DATA, Layout
from devicemount_testbed.network import entering
from devicemount_testbed.topology import (
    DNS_SERVICE_ADDRESS,
    RUNTIMES,
    CgroupDriver,
    CgroupVersion,
    Node,
    NodeName,
)

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# as cgroup v2 lacks controllers where v1 has them, see components/devices_only
RUNTIME_SUFFIX = {CgroupVersion.V1: "", CgroupVersion.V2: "-devices-only"}
KUBELET_ROOT = "/var/lib/kubelet"  # a test moves it, as some distributions do
TEMPLATES = ("containerd.toml", "cni.conflist", "kubelet.yaml", "kube-proxy.yaml")
START = {CgroupDriver.CGROUPFS: "node-start.sh", CgroupDriver.SYSTEMD: "node-systemd.sh"}
UNITS = DATA / "systemd"
# only node3 has a cgroup namespace of its own; to enter the machine's once more changes nothing
NAMESPACES = ("--mount", "--uts", "--net", "--pid", "--cgroup")


def write_files(layout: Layout, node: Node) -> None:
    """Write the node's configuration and the empty /var that is its own."""
    directory = layout.node(node)
    (directory / "cni").mkdir(parents=True)
    for name in ("lib/kubelet/static-pods", "lib/containerd", "lib/cni", "log/pods", "tmp"):
        (directory / "var" / name).mkdir(parents=True)
    (directory / "var/tmp").chmod(0o1777)
    (directory / "var/run").symlink_to("/run")
    (directory / "resolv.conf").write_text("# the testbed has no resolver\n")
    write_devices(directory / "devices.tar")
    values = _values(layout, node)
    for name in TEMPLATES:
        target = directory / "cni" / name if name.startswith("cni") else directory / name
        _fill(DATA / name, target, values)
    if node.driver is CgroupDriver.SYSTEMD:
        (directory / "systemd/system").mkdir(parents=True)
        for source in UNITS.rglob("*.*"):
            _fill(source, directory / "systemd" / source.relative_to(UNITS), values)


def _fill(source: Path, target: Path, values: Mapping[str, str]) -> None:
    target.write_text(Template(source.read_text()).substitute(values))


def start_command(node: Node) -> tuple[str, ...]:
    """The command whose process is the node: killed, it takes the node with it."""
    unshare = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return tuple(entering(node.netns, [*unshare, "--", "bash", str(DATA / START[node.driver])]))


def environment(layout: Layout, node: Node) -> dict[str, str]:
    """All that the start script and the node's processes see of the environment."""
    return {
        "PATH": search_path(layout),
        "HOME": "/root",
        "NODE_NAME": node.name,
        "NODE_DIR": str(layout.node(node)),
        "NODE_ADDRESS": node.address,
        "NODE_CGROUP": node.cgroup.value,
        "NODE_CGROUP_DIR": str(unified_cgroup(node)),
        "LOG_DIR": str(layout.log),
        "KUBELET_ROOT": _kubelet_root(),
        "KUBELET_KUBECONFIG": inside_kubeconfig(layout, node.name),
    }


def search_path(layout: Layout) -> str:
    return f"{layout.bin}:{SYSTEM_PATH}"


def init_component(name: NodeName) -> str:
    """The name by which the record knows a node's PID 1; it ends after all else in the node."""
    return f"{name}-init"


def enter_command(pid: int, argv: list[str]) -> list[str]:
    """Prefix a command so that it runs inside the node whose PID 1 is `pid`."""
    return ["nsenter", f"--target={pid}", *NAMESPACES, "--", *argv]


def inside_environment(layout: Layout) -> dict[str, str]:
    return {**os.environ, "PATH": search_path(layout)}


def root_of(pid: int) -> Path:
    """The node's file system as the machine sees it."""
    return Path(f"/proc/{pid}/root")


def _kubelet_root() -> str:
    return os.environ.get("DEVICEMOUNT_KUBELET_ROOT", KUBELET_ROOT)


def _values(layout: Layout, node: Node) -> dict[str, str]:
    return {
        "address": node.address,
        "bin": str(layout.bin),
        "driver": node.driver.value,
        "kubelet_kubeconfig": inside_kubeconfig(layout, node.name),
        "kubelet_root": _kubelet_root(),
        "log": str(layout.log),
        "path": search_path(layout),
        "runtimes": "".join(_runtime(layout, node, name) for name in RUNTIMES),
        "node_dir": str(layout.node(node)),
        "node": node.name,
        "cgroup_root": node.cgroup_root,
        "pod_cidr": node.pod_cidr,
        "dns": DNS_SERVICE_ADDRESS,
        "ca": str(layout.pki / "cluster-ca.crt"),
        "certificate": str(layout.pki / f"{node.name}.crt"),
        "key": str(layout.pki / f"{node.name}.key"),
        "proxy_kubeconfig": inside_kubeconfig(layout, "kube-proxy"),
    }


def _runtime(layout: Layout, node: Node, name: str) -> str:
    """Return the part of containerd's configuration that is about one runtime."""
    return Template((DATA / "containerd-runtime.toml").read_text()).substitute(
        name=name,
        binary=str(layout.bin / f"{name}{RUNTIME_SUFFIX[node.cgroup]}"),
        systemd_cgroup="true" if node.driver is CgroupDriver.SYSTEMD else "false",
    )
