# SPDX-License-Identifier: Apache-2.0
"""What the container runtime says, by CRI. Only facts: find.py judges them, the kernel proves them.

The labels are the kubelet's: pods and containers are looked up by the pod's UID, never by a name
alone.
"""

import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio

from devicemount_agent.container.runtimes import UNKNOWN, RuntimeFacts, facts_from, handler_from
from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.model import ContainerID, DeviceNumber, PodUID
from devicemount_agent.sockets import channel_to
from devicemount_node_api import cri_pb2, cri_pb2_grpc

CALL_TIMEOUT_S = 5.0  # a runtime under load needs some 100 ms
MESSAGE_LIMIT_BYTES = 16 << 20  # what the kubelet allows

POD_UID_LABEL = "io.kubernetes.pod.uid"
POD_NAME_LABEL = "io.kubernetes.pod.name"
POD_NAMESPACE_LABEL = "io.kubernetes.pod.namespace"
CONTAINER_NAME_LABEL = "io.kubernetes.container.name"


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """A container as the runtime sees it."""

    id: ContainerID
    pod_uid: PodUID
    namespace: str
    pod_name: str
    name: str
    is_running: bool
    pid: int  # of its first process, in the agent's pid namespace; 0: none
    mounts: frozenset[str] = frozenset()  # where the kubelet asked for some, in the container
    permitted: frozenset[DeviceNumber] = frozenset()  # numbers that the runtime was told to allow
    runtime: RuntimeFacts = UNKNOWN


@dataclass(frozen=True, slots=True)
class SandboxFacts:
    """A pod as the runtime sees it."""

    namespace: str
    name: str
    is_ready: bool
    labels: Mapping[str, str]  # the pod's own are among them
    annotations: Mapping[str, str]  # the pod's, as they were when the kubelet made its sandbox


class Runtime:
    """The runtime's socket, over one warm channel that follows a restarted server."""

    def __init__(self, socket: Path) -> None:
        self._channel = channel_to(socket, message_limit_bytes=MESSAGE_LIMIT_BYTES)
        self._stub = cri_pb2_grpc.RuntimeServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close(None)

    async def version(self) -> str:
        """Return name and version of the runtime. Raises NodeUnavailable unless it answers."""
        answer = await _answered(
            self._stub.Version(cri_pb2.VersionRequest(), timeout=CALL_TIMEOUT_S),
        )
        return f"{answer.runtime_name} {answer.runtime_version}"

    async def running(self, pod_uid: PodUID, name: str | None = None) -> ContainerID | None:
        """Return the newest running container of a pod (of that name), or None."""
        labels = {POD_UID_LABEL: str(pod_uid)}
        if name is not None:
            labels[CONTAINER_NAME_LABEL] = name
        newest = max(await self._running(labels), key=lambda c: c.created_at, default=None)
        return ContainerID(newest.id) if newest is not None else None

    async def all_running(self, name: str) -> Mapping[PodUID, ContainerID]:
        """Return the newest running container of that name in each pod that has one."""
        found = await self._running({CONTAINER_NAME_LABEL: name})
        oldest_first = sorted(found, key=lambda c: c.created_at)
        return {PodUID(c.labels.get(POD_UID_LABEL, "")): ContainerID(c.id) for c in oldest_first}

    async def of_pod(self, pod_uid: PodUID) -> tuple[ContainerID, ...]:
        """Return the running containers of a pod."""
        found = await self._running({POD_UID_LABEL: str(pod_uid)})
        return tuple(ContainerID(one.id) for one in found)

    async def every_running(self) -> tuple[ContainerID, ...]:
        """Return all running containers of this node."""
        return tuple(ContainerID(found.id) for found in await self._running({}))

    async def _running(self, labels: Mapping[str, str]) -> Sequence[cri_pb2.Container]:
        state = cri_pb2.ContainerStateValue(state=cri_pb2.CONTAINER_RUNNING)
        request = cri_pb2.ListContainersRequest(
            filter=cri_pb2.ContainerFilter(label_selector=labels, state=state)
        )
        answer = await _answered(self._stub.ListContainers(request, timeout=CALL_TIMEOUT_S))
        return answer.containers

    async def container(self, container_id: ContainerID) -> ContainerFacts | None:
        """Return what is known of a container; None if there is no such one."""
        request = cri_pb2.ContainerStatusRequest(container_id=container_id, verbose=True)
        try:
            answer = await _answered(self._stub.ContainerStatus(request, timeout=CALL_TIMEOUT_S))
        except _NotFound:
            return None
        status, labels = answer.status, answer.status.labels
        return ContainerFacts(
            id=ContainerID(status.id),
            pod_uid=PodUID(labels.get(POD_UID_LABEL, "")),
            namespace=labels.get(POD_NAMESPACE_LABEL, ""),
            pod_name=labels.get(POD_NAME_LABEL, ""),
            name=labels.get(CONTAINER_NAME_LABEL, ""),
            is_running=status.state == cri_pb2.CONTAINER_RUNNING,
            pid=_pid_of(answer.info.get("info", "")),
            mounts=frozenset(mount.container_path for mount in status.mounts),
            permitted=_permitted_by(answer.info.get("info", "")),
            runtime=facts_from(answer.info.get("info", "")),
        )

    async def sandbox(self, pod_uid: PodUID) -> SandboxFacts | None:
        """Return the newest sandbox of a pod, or None."""
        newest = await self._newest_sandbox(pod_uid)
        return None if newest is None else _sandbox_facts(newest)

    async def handler(self, pod_uid: PodUID) -> str:
        """Return which runtime a pod is of, by the name in the runtime's configuration.

        Empty where it does not say. CRI-O lists no handler; it says it of one sandbox, verbosely.
        """
        newest = await self._newest_sandbox(pod_uid)
        if newest is None or newest.runtime_handler:
            return newest.runtime_handler if newest is not None else ""
        request = cri_pb2.PodSandboxStatusRequest(pod_sandbox_id=newest.id, verbose=True)
        try:
            answer = await _answered(self._stub.PodSandboxStatus(request, timeout=CALL_TIMEOUT_S))
        except _NotFound:
            return ""
        return handler_from(answer.info.get("info", ""))

    async def _newest_sandbox(self, pod_uid: PodUID) -> cri_pb2.PodSandbox | None:
        request = cri_pb2.ListPodSandboxRequest(
            filter=cri_pb2.PodSandboxFilter(label_selector={POD_UID_LABEL: str(pod_uid)})
        )
        answer = await _answered(self._stub.ListPodSandbox(request, timeout=CALL_TIMEOUT_S))
        return max(answer.items, key=lambda sandbox: sandbox.created_at, default=None)

    async def all_sandboxes(self) -> Mapping[PodUID, SandboxFacts]:
        """Return the sandboxes of this node that are ready."""
        state = cri_pb2.PodSandboxStateValue(state=cri_pb2.SANDBOX_READY)
        request = cri_pb2.ListPodSandboxRequest(filter=cri_pb2.PodSandboxFilter(state=state))
        answer = await _answered(self._stub.ListPodSandbox(request, timeout=CALL_TIMEOUT_S))
        return {PodUID(found.metadata.uid): _sandbox_facts(found) for found in answer.items}


def _sandbox_facts(found: cri_pb2.PodSandbox) -> SandboxFacts:
    return SandboxFacts(
        namespace=found.metadata.namespace,
        name=found.metadata.name,
        is_ready=found.state == cri_pb2.SANDBOX_READY,
        labels=dict(found.labels),
        annotations=dict(found.annotations),
    )


_Answer = TypeVar("_Answer")


class _NotFound(NodeUnavailable):
    """The runtime knows no such object."""


async def _answered(call: Awaitable[_Answer]) -> _Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        what = _NotFound if error.code() is grpc.StatusCode.NOT_FOUND else NodeUnavailable
        raise what(f"container runtime: {error.code().name}: {error.details()}") from error


def _pid_of(info: str) -> int:
    """Return the pid in the verbose answer: containerd and CRI-O both have it at the top."""
    pid = json.loads(info).get("pid", 0) if info else 0
    return pid if isinstance(pid, int) else 0


def _permitted_by(info: str) -> frozenset[DeviceNumber]:
    """Return the numbers in the rules of the runtime's spec, where the verbose answer has one."""
    found = json.loads(info).get("runtimeSpec") if info else None
    resources = ((found or {}).get("linux") or {}).get("resources") or {}
    return frozenset(
        DeviceNumber(rule["type"], rule["major"], rule["minor"])
        for rule in resources.get("devices") or ()
        if rule.get("allow")
        and {"major", "minor"} <= rule.keys()
        and rule.get("type") in ("c", "b")
    )
