# SPDX-License-Identifier: Apache-2.0
"""A device plugin that answers with a directory means the device nodes below it."""

import os
import stat
from pathlib import Path

from devicemount_agent.allocation.kubelet import Entry
from devicemount_agent.allocation.read import Choice, devices_of
from devicemount_agent.model import DeviceID, DeviceNumber, PodUID, ResourceName
from devicemount_node_api import deviceplugin_pb2


def test_a_directory_means_the_nodes_below_it(tmp_path: Path) -> None:
    directory = tmp_path / "dir"
    (directory / "sub").mkdir(parents=True)
    os.mknod(directory / "a", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(directory / "sub/b", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    (directory / "link").symlink_to("/dev/zero")
    spec = deviceplugin_pb2.DeviceSpec(
        host_path=str(directory), container_path="/dev/inside", permissions="rw"
    )
    answer = deviceplugin_pb2.ContainerAllocateResponse(devices=[spec]).SerializeToString()
    given = Entry(
        PodUID("shadow"),
        "hold",
        ResourceName("example.com/gpu"),
        frozenset({DeviceID("gpu-0")}),
        answer,
    )
    (device,) = devices_of(Choice((given,)), root=tmp_path)
    assert [(node.path, node.number) for node in device.nodes] == [
        ("/dev/inside/a", DeviceNumber("c", 1, 3)),
        ("/dev/inside/sub/b", DeviceNumber("b", 7, 0)),
    ]
