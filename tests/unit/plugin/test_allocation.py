# SPDX-License-Identifier: Apache-2.0
"""What a container gets for its devices."""

import pytest

from devicemount_node_api import deviceplugin_pb2 as pb
from devicemount_plugin.allocation import SamePath, allocation_of
from devicemount_plugin.config import DeviceID, Resource
from devicemount_plugin.discovery import Device


def device(name: str, *nodes: str, control: tuple[str, ...] = ()) -> Device:
    return Device(id=DeviceID(name), label=name, nodes=nodes, control=control)


def allocation(*devices: Device, **fields: object) -> pb.ContainerAllocateResponse:
    source = {"name": "example.com/gadget", "nodes": {"glob": "/dev/*"}}
    return allocation_of(Resource.model_validate({**source, **fields}), devices)


def specs(answer: pb.ContainerAllocateResponse) -> list[tuple[str, str, str]]:
    return [(one.host_path, one.container_path, one.permissions) for one in answer.devices]


def test_a_device_brings_its_nodes_and_the_control_nodes_once() -> None:
    control = ("/dev/ctl",)
    answer = allocation(
        device("a", "/dev/a0", "/dev/a1", control=control), device("b", "/dev/b", control=control)
    )
    assert specs(answer) == [(p, p, "rw") for p in ("/dev/a0", "/dev/a1", "/dev/b", "/dev/ctl")]


def test_replicas_bring_their_device_once() -> None:
    assert specs(allocation(device("a", "/dev/a"), device("a", "/dev/a"))) == [
        ("/dev/a", "/dev/a", "rw")
    ]


def test_access_and_path_are_as_configured() -> None:
    answer = allocation(device("a", "/dev/a0"), access="r", containerPath="/dev/gadgets/{name}")
    assert specs(answer) == [("/dev/a0", "/dev/gadgets/a0", "r")]


def test_two_nodes_at_one_path_are_refused() -> None:
    with pytest.raises(SamePath, match=r"^/dev/gadget$"):
        allocation(device("a", "/dev/a"), device("b", "/dev/b"), containerPath="/dev/gadget")
    with pytest.raises(SamePath, match=r"^/dev/ctl$"):
        allocation(device("a", "/dev/a", control=("/dev/ctl",)), containerPath="/dev/ctl")


def test_mounts_and_environment_come_once() -> None:
    answer = allocation(
        device("a", "/dev/a"),
        device("b", "/dev/b"),
        mounts=[{"hostPath": "/opt/x", "containerPath": "/x"}],
        env={"GADGET": "yes"},
    )
    assert [(one.host_path, one.container_path, one.read_only) for one in answer.mounts] == [
        ("/opt/x", "/x", True)
    ]
    assert dict(answer.envs) == {"GADGET": "yes"}


def test_cdi_names_stand_for_the_nodes() -> None:
    answer = allocation(
        device("a", "/dev/a"), device("0000:3b:00.0"), cdi="example.com/gadget={id}"
    )
    assert [one.name for one in answer.cdi_devices] == [
        "example.com/gadget=a",
        "example.com/gadget=0000:3b:00.0",
    ]
    assert specs(answer) == []
