# SPDX-License-Identifier: Apache-2.0
"""A kubelet and a container runtime that say what a test tells them, on real unix sockets."""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from devicemount_node_api import (
    cri_pb2,
    cri_pb2_grpc,
    deviceplugin_pb2,
    podresources_pb2,
    podresources_pb2_grpc,
)


@dataclass
class FakeContainer:
    id: str
    pid: int
    labels: dict[str, str]
    is_running: bool = True
    permitted: list[tuple[str, int, int]] = field(default_factory=list)  # by the runtime's spec
    namespaces: list[dict[str, str]] | None = None  # by that, too; None: it does not say


@dataclass
class FakePod:
    uid: str
    namespace: str
    name: str
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


class FakeRuntime(cri_pb2_grpc.RuntimeServiceServicer):
    """The part of CRI that the agent uses, with containerd's shape of the verbose answer."""

    def __init__(self) -> None:
        self.containers: dict[str, FakeContainer] = {}
        self.sandboxes: list[FakePod] = []
        self.lists = 0
        self.asked = 0  # about one container

    def add(self, pod: FakePod, name: str, *, container_id: str, pid: int) -> None:
        labels = {
            "io.kubernetes.pod.uid": pod.uid,
            "io.kubernetes.pod.name": pod.name,
            "io.kubernetes.pod.namespace": pod.namespace,
            "io.kubernetes.container.name": name,
        }
        self.containers[container_id] = FakeContainer(container_id, pid, labels)

    async def Version(self, request, context):  # type: ignore[no-untyped-def]
        return cri_pb2.VersionResponse(
            version="0.1.0", runtime_name="fake", runtime_version="0.1.0"
        )

    async def ListContainers(self, request, context):  # type: ignore[no-untyped-def]
        self.lists += 1
        wanted = dict(request.filter.label_selector)
        found = (
            cri_pb2.Container(id=c.id, labels=c.labels)
            for c in self.containers.values()
            if c.is_running and wanted.items() <= c.labels.items()
        )
        return cri_pb2.ListContainersResponse(containers=found)

    async def ContainerStatus(self, request, context):  # type: ignore[no-untyped-def]
        self.asked += 1
        known = self.containers.get(request.container_id)
        if known is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "an error occurred: not found")
            raise AssertionError
        state = cri_pb2.CONTAINER_RUNNING if known.is_running else cri_pb2.CONTAINER_EXITED
        rules = [
            {"allow": True, "type": kind, "major": major, "minor": minor, "access": "rwm"}
            for kind, major, minor in known.permitted
        ]
        own = {
            "pid": known.pid if known.is_running else 0,
            "runtimeSpec": {
                "linux": {
                    "resources": {"devices": [{"allow": False}, *rules]},
                    "namespaces": known.namespaces,
                }
            },
        }
        namespaces = {"config": {"linux": {"security_context": {"namespace_options": {"pid": 1}}}}}
        return cri_pb2.ContainerStatusResponse(
            status=cri_pb2.ContainerStatus(id=known.id, labels=known.labels, state=state),
            info={"info": json.dumps(namespaces | own)},
        )

    async def ListPodSandbox(self, request, context):  # type: ignore[no-untyped-def]
        wanted = dict(request.filter.label_selector)
        found = (
            cri_pb2.PodSandbox(
                metadata=cri_pb2.PodSandboxMetadata(
                    name=pod.name, uid=pod.uid, namespace=pod.namespace
                ),
                labels=pod.labels | {"io.kubernetes.pod.uid": pod.uid},
                annotations=pod.annotations,
            )
            for pod in self.sandboxes
            if wanted.items() <= {"io.kubernetes.pod.uid": pod.uid}.items()
        )
        return cri_pb2.ListPodSandboxResponse(items=found)


class FakeKubelet(podresources_pb2_grpc.PodResourcesListerServicer):
    """A checkpoint, written as the kubelet writes it, and List."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.entries: list[dict[str, object]] = []
        self.shown: dict[tuple[str, str], tuple[str, Mapping[str, list[str]]]] = {}
        self.registered: dict[str, list[str]] = {}  # resource -> healthy ids
        self.ended: set[str] = set()  # whose plugin is gone: the checkpoint does not say so
        self.lists = 0
        self.refusals: list[tuple[grpc.StatusCode, str]] = []  # answered first, one a call
        self.on_list: list[asyncio.Event] = []  # each lets one call pass when it is set

    def choose(
        self,
        pod: FakePod,
        resource: str,
        nodes: Mapping[str, list[tuple[str, str]]],
        *,
        container: str = "hold",
        answer: deviceplugin_pb2.ContainerAllocateResponse | None = None,
    ) -> None:
        """Give the pod devices: id -> [(host path, path in the container)]."""
        specs = [
            deviceplugin_pb2.DeviceSpec(host_path=host, container_path=path, permissions="rw")
            for of_device in nodes.values()
            for host, path in of_device
        ]
        full = answer or deviceplugin_pb2.ContainerAllocateResponse(devices=specs)
        self.entries.append(
            {
                "PodUID": pod.uid,
                "ContainerName": container,
                "ResourceName": resource,
                "DeviceIDs": {"-1": list(nodes)},
                "AllocResp": base64.b64encode(full.SerializeToString()).decode(),
            }
        )
        self.shown[pod.namespace, pod.name] = (container, {resource: list(nodes)})
        self.write()

    def healthy(self, resource: str, *ids: str) -> None:
        """A device plugin says which of its devices are healthy."""
        self.registered[resource] = list(ids)
        self.write()

    def forget(self, pod: FakePod) -> None:
        """The pod is gone; its entry stays in the file, as dead pods' do."""
        self.shown.pop((pod.namespace, pod.name))

    def write(self) -> None:
        new = self.directory / ".kubelet_internal_checkpoint1"
        data = {"PodDeviceEntries": self.entries or None, "RegisteredDevices": self.registered}
        new.write_text(json.dumps({"Data": data, "Checksum": 1}))
        new.rename(self.directory / "kubelet_internal_checkpoint")

    async def GetAllocatableResources(self, request, context):  # type: ignore[no-untyped-def]
        devices = (
            podresources_pb2.ContainerDevices(resource_name=resource, device_ids=ids)
            for resource, ids in self.registered.items()
            if resource not in self.ended
        )
        return podresources_pb2.AllocatableResourcesResponse(devices=devices)

    async def List(self, request, context):  # type: ignore[no-untyped-def]
        self.lists += 1
        if self.refusals:
            await context.abort(*self.refusals.pop(0))
        if self.on_list:
            await self.on_list.pop(0).wait()
        pods = (
            podresources_pb2.PodResources(
                namespace=namespace,
                name=name,
                containers=[
                    podresources_pb2.ContainerResources(
                        name=container,
                        devices=[
                            podresources_pb2.ContainerDevices(
                                resource_name=resource, device_ids=[device]
                            )
                            for resource, ids in devices.items()
                            for device in ids  # one entry a device, as with NUMA nodes
                        ],
                    )
                ],
            )
            for (namespace, name), (container, devices) in self.shown.items()
        )
        return podresources_pb2.ListPodResourcesResponse(pod_resources=pods)


async def serve_runtime(runtime: FakeRuntime, socket: Path) -> grpc.aio.Server:
    server = grpc.aio.server()
    cri_pb2_grpc.add_RuntimeServiceServicer_to_server(runtime, server)
    server.add_insecure_port(f"unix://{socket}")
    await server.start()
    return server


async def serve_kubelet(kubelet: FakeKubelet, socket: Path) -> grpc.aio.Server:
    server = grpc.aio.server()
    podresources_pb2_grpc.add_PodResourcesListerServicer_to_server(kubelet, server)
    server.add_insecure_port(f"unix://{socket}")
    await server.start()
    return server
