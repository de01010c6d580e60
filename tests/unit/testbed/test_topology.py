# SPDX-License-Identifier: Apache-2.0
"""Names and addresses of nodes, which must not meet."""

import ipaddress

import pytest

from devicemount_testbed.errors import UnknownNode
from devicemount_testbed.topology import (
    CONTROL_ADDRESS,
    NODES,
    PREFIX_LENGTH,
    SERVICE_CIDR,
    CgroupDriver,
    CgroupVersion,
    netns_names,
    node_named,
)

IFNAMSIZ = 16  # with the ending zero
MAX_PODS = 500


def test_one_node_for_each_cgroup_version_and_driver() -> None:
    assert [(node.name, node.cgroup, node.driver) for node in NODES] == [
        ("node1", CgroupVersion.V1, CgroupDriver.CGROUPFS),
        ("node2", CgroupVersion.V2, CgroupDriver.CGROUPFS),
        ("node3", CgroupVersion.V2, CgroupDriver.SYSTEMD),
    ]


def test_a_kubelet_works_below_the_nodes_cgroup_as_its_node_sees_it() -> None:
    assert [node.cgroup_root for node in NODES] == ["/dmtb-node1", "/dmtb-node2", "/"]


def test_whatever_has_a_name_on_the_machine_shows_whose_it_is() -> None:
    names = [*netns_names(), *(n.link for n in NODES), *(n.cgroup_name for n in NODES)]
    assert all(name.startswith("dmtb-") for name in names)
    assert all(len(node.link) < IFNAMSIZ for node in NODES)


def test_pod_ranges_hold_all_pods_and_do_not_overlap() -> None:
    ranges = [ipaddress.ip_network(node.pod_cidr) for node in NODES]
    assert all(pods.num_addresses > 2 * MAX_PODS for pods in ranges)
    networks = [*ranges, ipaddress.ip_network(SERVICE_CIDR)]
    networks.append(ipaddress.ip_network(f"{CONTROL_ADDRESS}/{PREFIX_LENGTH}", strict=False))
    for i, network in enumerate(networks):
        assert not any(network.overlaps(other) for other in networks[i + 1 :])


def test_an_unknown_node_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(UnknownNode, match="no node 'node9'; nodes: node1, node2, node3"):
        node_named("node9")
