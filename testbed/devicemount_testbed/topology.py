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
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_SERVICE_ADDRESS = "10.96.0.10"  # nobody answers: kube-proxy refuses at once, nothing waits


class CgroupVersion(Enum):
    """The cgroup hierarchy that a node's kubelet and containers use."""

    V1 = "v1"
    V2 = "v2"


@dataclass(frozen=True, slots=True)
class Node:
    """One node: a set of namespaces with a kubelet, a containerd and a kube-proxy."""

    name: NodeName
    index: int
    cgroup: CgroupVersion

    @property
    def netns(self) -> str:
        return f"dmtb-{self.name}"

    @property
    def cgroup_name(self) -> str:
        return f"dmtb-{self.name}"

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


NODES = (
    Node(name=NodeName("node1"), index=1, cgroup=CgroupVersion.V1),
    Node(name=NodeName("node2"), index=2, cgroup=CgroupVersion.V2),
)


def netns_names() -> tuple[str, ...]:
    return (CONTROL_NETNS, *(node.netns for node in NODES))


def node_named(name: str) -> Node:
    for node in NODES:
        if node.name == name:
            return node
    raise UnknownNode(f"no node {name!r}; nodes: {', '.join(node.name for node in NODES)}")
