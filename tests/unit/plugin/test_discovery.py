# SPDX-License-Identifier: Apache-2.0
"""Which devices a resource has is a function of the nodes below a root."""

import pytest

from devicemount_plugin.config import Nodes, Resource
from devicemount_plugin.discovery import Device, discover

from .conftest import Node


def resource(nodes: Nodes, *, replicas: int = 1) -> Resource:
    return Resource(name="example.com/gadget", nodes=nodes, replicas=replicas)


def found(node: Node, nodes: Nodes, *, replicas: int = 1) -> dict[str, str]:
    devices = discover(resource(nodes, replicas=replicas), root=node.root)
    assert all(key == device.id for key, device in devices.items())
    return {device.id: device.path for device in devices.values()}


def test_each_match_is_a_device_named_like_its_node(node: Node) -> None:
    node.plug("loop0", "loop1", "loop10", "loop-control")
    assert found(node, Nodes(glob="/dev/loop[0-3]")) == {
        "loop0": "/dev/loop0",
        "loop1": "/dev/loop1",
    }


def test_paths_that_are_absent_are_no_devices(node: Node) -> None:
    node.plug("vcs", "vcsa1")
    assert found(node, Nodes(paths=["/dev/vcs1", "/dev/vcs"])) == {"vcs": "/dev/vcs"}


def test_a_path_is_not_a_pattern(node: Node) -> None:
    node.plug("loop0")
    assert found(node, Nodes(paths=["/dev/loop*"])) == {}


def test_directories_files_and_dangling_links_are_no_devices(node: Node) -> None:
    node.plug("usb/port1", "gadget0")
    node.put_file("file")
    (node.root / "dev" / "broken").symlink_to("nowhere")
    assert found(node, Nodes(glob="/dev/*")) == {"gadget0": "/dev/gadget0"}


def test_a_node_in_a_directory_is_named_by_its_path(node: Node) -> None:
    node.plug("card/gadget0", "serial/gadget0")
    assert found(node, Nodes(glob="/dev/*/gadget*")) == {
        "card-gadget0": "/dev/card/gadget0",
        "serial-gadget0": "/dev/serial/gadget0",
    }


@pytest.mark.parametrize(
    ("replicas", "ids"),
    [
        pytest.param(1, ["fuse"], id="one replica keeps the plain name"),
        pytest.param(3, ["fuse::0", "fuse::1", "fuse::2"], id="replicas are numbered from 0"),
    ],
)
def test_replicas_share_a_node(node: Node, replicas: int, ids: list[str]) -> None:
    node.plug("fuse")
    devices = found(node, Nodes(paths=["/dev/fuse"]), replicas=replicas)
    assert devices == dict.fromkeys(ids, "/dev/fuse")


def test_the_answer_depends_on_nothing_else(node: Node) -> None:
    node.plug("loop1", "loop0")
    first = discover(resource(Nodes(glob="/dev/loop*")), root=node.root)
    assert list(first.values()) == [
        Device(id="loop0", path="/dev/loop0"),
        Device(id="loop1", path="/dev/loop1"),
    ]
    assert discover(resource(Nodes(glob="/dev/loop*")), root=node.root) == first
