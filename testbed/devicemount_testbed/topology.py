# SPDX-License-Identifier: Apache-2.0
"""Names, addresses and nodes of the testbed: plain data that every other module reads.

Whatever has a name on the machine begins with `dmtb-`, so that a person sees whose it is.
The bridge and the addresses exist only inside the testbed's own network namespaces.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NewType

from devicemount_testbed.errors import UnknownNode

NodeName = NewType("NodeName", str)

CONTROL_NETNS = "dmtb-control"
BRIDGE = "dmtb-br"
CONTROL_ADDRESS = "192.168.77.1"
PREFIX_LENGTH = 24
API_PORT = 6443
SERVICE_CIDR = "10.96.0.0/16"
RUNTIMES = ("runc", "crun")  # that a node's containerd knows, the default first
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_SERVICE_ADDRESS = "10.96.0.10"  # nobody answers: kube-proxy refuses at once, nothing waits


class CgroupVersion(Enum):
    """The cgroup hierarchy that a node's kubelet and containers use."""

    V1 = "v1"
    V2 = "v2"


class CgroupDriver(Enum):
    """Who makes the cgroups of pods; with SYSTEMD, systemd is PID 1 of the node's namespaces."""

    CGROUPFS = "cgroupfs"
    SYSTEMD = "systemd"


@dataclass(frozen=True, slots=True)
class Node:
    """One node: a set of namespaces with a kubelet, a containerd and a kube-proxy."""

    name: NodeName
    index: int
    cgroup: CgroupVersion
    driver: CgroupDriver

    @property
    def netns(self) -> str:
        return f"dmtb-{self.name}"

    @property
    def cgroup_name(self) -> str:
        return f"dmtb-{self.name}"

    @property
    def cgroup_root(self) -> str:
        """The node's top cgroup as its kubelet sees it: systemd has a cgroup namespace."""
        match self.driver:
            case CgroupDriver.CGROUPFS:
                return f"/{self.cgroup_name}"
            case CgroupDriver.SYSTEMD:
                return "/"

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes of RUNTIMES by which pods run here.

        crun refuses cgroup v1 on a machine whose unified hierarchy has controllers, too.
        """
        match self.cgroup:
            case CgroupVersion.V1:
                return RUNTIMES[:1]
            case CgroupVersion.V2:
                return RUNTIMES

    @property
    def link(self) -> str:
        """The end of the node's veth pair that is a port of the bridge."""
        return f"dmtb-veth{self.index}"

    @property
    def address(self) -> str:
        return f"192.168.77.{10 + self.index}"

    @property
    def pod_cidr(self) -> str:
        """1022 addresses: 500 pods and as many that are being deleted."""
        return f"10.244.{4 * self.index}.0/22"


# A kubelet that starts anew beside living pods needs the controllers that it sets limits by. Where
# the machine binds these to cgroup v1, only node1's kubelet survives a restart: tests end that one.
NODES = (
    Node(
        name=NodeName("node1"),
        index=1,
        cgroup=CgroupVersion.V1,
        driver=CgroupDriver.CGROUPFS,
    ),
    Node(
        name=NodeName("node2"),
        index=2,
        cgroup=CgroupVersion.V2,
        driver=CgroupDriver.CGROUPFS,
    ),
    Node(
        name=NodeName("node3"),
        index=3,
        cgroup=CgroupVersion.V2,
        driver=CgroupDriver.SYSTEMD,
    ),
)


def netns_names() -> tuple[str, ...]:
    return (CONTROL_NETNS, *(node.netns for node in NODES))


def node_named(name: str) -> Node:
    for node in NODES:
        if node.name == name:
            return node
    raise UnknownNode(f"no node {name!r}; nodes: {', '.join(node.name for node in NODES)}")
