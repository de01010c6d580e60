# SPDX-License-Identifier: Apache-2.0
"""What the kubelet is told to put into a container that gets devices of a resource (pure)."""

from collections.abc import Sequence

from devicemount_node_api import deviceplugin_pb2 as pb
from devicemount_plugin.config import Resource
from devicemount_plugin.discovery import Device


class SamePath(Exception):
    """Two device nodes would stand at one path in the container."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def allocation_of(resource: Resource, devices: Sequence[Device]) -> pb.ContainerAllocateResponse:
    """Build the answer for one container; raise SamePath.

    Replicas share their device, devices their control nodes: each node is named once.
    """
    answer = pb.ContainerAllocateResponse(envs=resource.env)
    answer.mounts.extend(
        pb.Mount(
            host_path=mount.host_path,
            container_path=mount.container_path,
            read_only=mount.read_only,
        )
        for mount in resource.mounts
    )
    different = tuple({device.id: device for device in devices}.values())
    if resource.cdi is not None:
        names = (resource.cdi.replace("{id}", device.id) for device in different)
        answer.cdi_devices.extend(pb.CDIDevice(name=name) for name in names)
        return answer
    answer.devices.extend(
        pb.DeviceSpec(host_path=host, container_path=inside, permissions=resource.access)
        for inside, host in _paths(resource, different).items()
    )
    return answer


def _paths(resource: Resource, devices: Sequence[Device]) -> dict[str, str]:
    """Return the node's path for each path in the container."""
    paths: dict[str, str] = {}
    for device in devices:
        for host in device.nodes:
            inside = resource.inside(host)
            if paths.setdefault(inside, host) != host:
                raise SamePath(inside)
    for device in devices:
        for host in device.control:
            if paths.setdefault(host, host) != host:
                raise SamePath(host)
    return paths
