# SPDX-License-Identifier: Apache-2.0
"""The world of one test: a namespace, a node with a stub agent, pods whose kubelet and scheduler is
the test."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from component.operator.control_plane import OPERATOR
from component.operator.stub_agent import CONTAINER_ID, StubAgent
from devicemount_operator import errors
from devicemount_operator.__main__ import run
from devicemount_operator.settings import Settings
from devicemount_operator.transport import MERGE_PATCH, JsonObject, Transport

SYSTEM = "devicemount-system"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/devicemount-operator"
NODE = "node1"
LOOP = "testbed.devicemount.io/loop"
HOLD_IMAGE = "localhost/devicemount-hold:dev"
FINALIZER = "devicemount.io/finalizer"
DEADLINE_S = 20.0  # of anything that is waited for; what must be quick is measured
ROOT = Path(__file__).parents[3]
CLUSTER_WIDE = (
    "clusterrole",
    "clusterrolebinding",
    "mutatingadmissionpolicy",
    "mutatingadmissionpolicybinding",
)
WRITES = ("create", "update", "patch", "delete")

Watched = Callable[[], Awaitable[Any]]


class Scene:
    """What a test does to the cluster, in its own words."""

    def __init__(
        self, transport: Transport, *, certificates: Path, agent: StubAgent, audit: Path
    ) -> None:
        self.transport = transport
        self.agent = agent
        self.namespace = f"test-{uuid.uuid4().hex[:8]}"
        self.settings = Settings(
            namespace=SYSTEM,
            identity="test",
            hold_image=HOLD_IMAGE,
            tls_directory=certificates / "operator",
            health_port=0,
            agent_port=agent.port,
            agent_poll_s=0.1,
            agent_check_s=0.1,
            lease_retry_s=0.5,
            lease_watch_s=0.2,
        )
        self._audit = audit

    async def prepare(self) -> None:
        """Make what the operator needs, its rights exactly as our manifests give them."""
        for crd in documents("crds/devicemounts.yaml"):
            await self.ensure("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        for name in (SYSTEM, self.namespace):
            await self.ensure(
                "/api/v1/namespaces",
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
            )
        for body in documents("manifests/base/operator-rbac.yaml"):
            await self.ensure(collection_of(body), body)
        await self.node(allocatable=4)
        await self.agent_pod()
        await self.eventually(lambda: self.get(self.mount_path("")))

    async def close(self) -> None:
        """Leave nothing for the next operator to find."""
        for mount in await self.mounts():
            path = self.mount_path(mount["metadata"]["name"])
            await self.call("PATCH", path, {"metadata": {"finalizers": None}})
            await self.delete(path)
        for pod in await self.pods():
            await self.delete(self.pod_path(pod["metadata"]["name"]), grace_s=0)

    # The operator

    def with_lease(self, *, duration_s: float, renew_deadline_s: float, retry_s: float) -> Settings:
        """Return settings with which the Lease changes hands sooner."""
        return replace(
            self.settings,
            lease_duration_s=duration_s,
            lease_renew_deadline_s=renew_deadline_s,
            lease_retry_s=retry_s,
        )

    @asynccontextmanager
    async def operator(self, **changed: Any) -> AsyncIterator[asyncio.Event]:
        """Run an operator until the block ends, or until what it yields is set.

        It ends in peace.
        """
        stop = asyncio.Event()
        task = asyncio.create_task(run(replace(self.settings, **changed), stop=stop))
        try:
            yield stop
        finally:
            stop.set()
            await asyncio.wait_for(task, DEADLINE_S)

    @contextmanager
    def counted(self, verbs: tuple[str, ...] = WRITES) -> Iterator[list[str]]:
        """Collect the operator's requests in this namespace during the block: "create pods"."""
        start = self._audit.stat().st_size
        writes: list[str] = []
        yield writes
        with self._audit.open() as file:
            file.seek(start)
            for entry in map(json.loads, file):
                what = entry.get("objectRef") or {}
                ours = entry["user"]["username"] == OPERATOR
                if ours and entry["verb"] in verbs and what.get("namespace") == self.namespace:
                    resource = "/".join(
                        part for part in (what["resource"], what.get("subresource")) if part
                    )
                    writes.append(f"{entry['verb']} {resource}")

    def resyncs(self) -> int:
        """Return how often the operator has listed all DeviceMounts."""
        with self._audit.open() as file:
            entries = [entry for entry in map(json.loads, file) if entry["verb"] == "list"]
        return sum(
            entry["user"]["username"] == OPERATOR
            and entry.get("objectRef", {}).get("resource") == "devicemounts"
            for entry in entries
        )

    # The cluster

    @asynccontextmanager
    async def finalizer_policy(self) -> AsyncIterator[None]:
        """Have the API server set the finalizer, as our component does, until the block ends."""
        policy = tuple(documents("manifests/components/finalizer/policy-finalizer.yaml"))
        for body in policy:
            await self.call("POST", collection_of(body), body)
        try:
            await self.eventually(lambda: self._admitted_with([FINALIZER]))
            yield
        finally:
            for body in policy:
                await self.delete(f"{collection_of(body)}/{body['metadata']['name']}")
            await self.eventually(lambda: self._admitted_with([]))

    async def _admitted_with(self, finalizers: list[str]) -> bool:
        """Tell what admission does to a new object, without making one."""
        body = self.mount_body("probe")
        answer = await self.call("POST", f"{self.mount_path('')}?dryRun=All", body)
        return bool(answer["metadata"].get("finalizers", []) == finalizers)

    async def node(self, *, allocatable: int) -> None:
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
        await self.ensure("/api/v1/nodes", body)
        await self.label_node("true")
        resources = {"cpu": "4", "memory": "8Gi", "pods": "110", LOOP: str(allocatable)}
        status = {"status": {"capacity": resources, "allocatable": resources}}
        await self.call("PATCH", f"/api/v1/nodes/{NODE}/status", status)

    async def label_node(self, value: str | None) -> None:
        labels = {"devicemount.io/enabled": value}
        await self.call("PATCH", f"/api/v1/nodes/{NODE}", {"metadata": {"labels": labels}})

    async def agent_pod(self, *, ip: str = "127.0.0.1") -> None:
        name = "devicemount-agent-1"
        labels = {"app.kubernetes.io/component": "agent"}
        body = pod_body(name, SYSTEM, ("agent",), labels=labels)
        await self.ensure(f"/api/v1/namespaces/{SYSTEM}/pods", body)
        path = f"/api/v1/namespaces/{SYSTEM}/pods/{name}/status"
        status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}
        await self.call("PATCH", path, {"status": status})

    async def no_agent_pod(self) -> None:
        await self.delete(f"/api/v1/namespaces/{SYSTEM}/pods/devicemount-agent-1", grace_s=0)

    async def running_pod(
        self,
        name: str = "target",
        containers: tuple[str, ...] = ("main",),
        *,
        labels: dict[str, str] | None = None,
    ) -> JsonObject:
        body = pod_body(name, self.namespace, containers, labels=labels)
        pod = await self.call("POST", self.pod_path(""), body)
        await self.set_status(name, running(containers))
        return pod

    async def complain(self, shadow: JsonObject, *, resource: str = LOOP) -> None:
        """Let the scheduler say that too few are free."""
        complaint = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": f"0/1 nodes are available: 1 Insufficient {resource}.",
        }
        await self.set_status(shadow["metadata"]["name"], {"conditions": [complaint]})

    async def set_status(self, name: str, status: JsonObject) -> None:
        await self.call("PATCH", self.pod_path(name) + "/status", {"status": status})

    async def mount(
        self,
        name: str = "dm",
        *,
        pod: str = "target",
        container: str | None = None,
        finalizers: tuple[str, ...] = (),
        count: int = 1,
        reservation: JsonObject | None = None,
    ) -> JsonObject:
        body = self.mount_body(name, pod=pod, container=container, count=count)
        body["metadata"]["finalizers"] = list(finalizers)
        if reservation is not None:
            body["spec"]["reservation"] = reservation
        return await self.call("POST", self.mount_path(""), body)

    def mount_body(
        self, name: str, *, pod: str = "target", container: str | None = None, count: int = 1
    ) -> JsonObject:
        target = {"podName": pod} if container is None else {"podName": pod, "container": container}
        return {
            "apiVersion": "devicemount.io/v1alpha1",
            "kind": "DeviceMount",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"target": target, "resources": {"limits": {LOOP: count}}},
        }

    async def unmount(self, name: str = "dm") -> None:
        await self.delete(self.mount_path(name))

    async def schedule(self, shadow: JsonObject) -> None:
        """Bind a shadow pod and let its container run, as scheduler and kubelet would."""
        name = shadow["metadata"]["name"]
        target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": self.namespace},
            "target": target,
        }
        await self.call("POST", self.pod_path(name) + "/binding", binding)
        await self.set_status(name, running(("hold",)))

    async def take_lease(self, holder: str) -> None:
        """Write another holder into the Lease, as one does for whom it has expired."""
        await self.call("PATCH", LEASE, {"spec": {"holderIdentity": holder}})

    # What is so

    async def lease_holder(self) -> str | None:
        lease = await self.get(LEASE)
        return None if lease is None else lease["spec"].get("holderIdentity")

    async def mounts(self) -> list[JsonObject]:
        return list((await self.call("GET", self.mount_path("")))["items"])

    async def pods(self, selector: str = "") -> list[JsonObject]:
        path = f"{self.pod_path('')}?labelSelector={selector}"
        return list((await self.call("GET", path))["items"])

    async def shadows(self) -> list[JsonObject]:
        return await self.pods("devicemount.io/shadow")

    async def get_mount(self, name: str = "dm") -> JsonObject | None:
        return await self.get(self.mount_path(name))

    async def get(self, path: str) -> JsonObject | None:
        try:
            return await self.call("GET", path)
        except (errors.NotFound, errors.ResourceNotServed):
            return None

    async def events(self, reason: str) -> list[JsonObject]:
        path = f"/api/v1/namespaces/{self.namespace}/events?fieldSelector=reason={reason}"
        return list((await self.call("GET", path))["items"])

    async def reason(self, name: str = "dm") -> str:
        """Return the reason of condition Ready, or of Suspended, or "" before there is one."""
        mount = await self.get_mount(name)
        conditions = ((mount or {}).get("status") or {}).get("conditions") or ()
        return next((c["reason"] for c in conditions if c["type"] == "Ready"), "")

    # Waiting

    async def eventually(
        self, watched: Watched, *, within_s: float = DEADLINE_S, every_s: float = 0.02
    ) -> Any:
        """Return the first truthy answer.

        An answer that is empty or an ApiError is asked for again.
        """
        deadline = time.monotonic() + within_s
        while True:
            try:
                answer = await watched()
            except errors.ApiError as error:
                answer, last = None, repr(error)
            else:
                last = repr(answer)
                if answer:
                    return answer
            assert time.monotonic() < deadline, f"not within {within_s} s; last: {last}"
            await asyncio.sleep(every_s)

    async def becomes(
        self, reason: str, name: str = "dm", *, within_s: float = DEADLINE_S
    ) -> JsonObject:
        """Wait for condition Ready's reason; returns the object."""

        async def has_reason() -> JsonObject | None:
            seen = await self.reason(name)
            return await self.get_mount(name) if seen == reason else None

        try:
            found: JsonObject = await self.eventually(has_reason, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{name} is {await self.reason(name)!r}, not {reason}") from error
        return found

    async def shadow(self) -> JsonObject:
        found: list[JsonObject] = await self.eventually(self.shadows)
        return found[0]

    async def gone(self, path: str, *, within_s: float = DEADLINE_S) -> None:
        async def is_gone() -> bool:
            return await self.get(path) is None

        await self.eventually(is_gone, within_s=within_s)

    # Plumbing

    async def call(self, method: str, path: str, body: JsonObject | None = None) -> JsonObject:
        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        return await self.transport.call(method, path, body=body, content_type=kind, timeout_s=10)

    async def ensure(self, path: str, body: JsonObject) -> None:
        try:
            await self.call("POST", path, body)
        except errors.AlreadyExists:
            return

    async def delete(self, path: str, *, grace_s: int | None = None) -> None:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": grace_s}
        try:
            await self.call("DELETE", path, options)
        except errors.NotFound:
            return

    def mount_path(self, name: str) -> str:
        base = f"/apis/devicemount.io/v1alpha1/namespaces/{self.namespace}/devicemounts"
        return f"{base}/{name}" if name else base

    def pod_path(self, name: str) -> str:
        base = f"/api/v1/namespaces/{self.namespace}/pods"
        return f"{base}/{name}" if name else base


def documents(path: str) -> Iterator[JsonObject]:
    """Yield the objects of a file of the repository."""
    with (ROOT / path).open() as file:
        yield from yaml.safe_load_all(file)


def collection_of(body: JsonObject) -> str:
    """Return where to POST an object; those that are in a namespace are in ours."""
    group = "api" if "/" not in body["apiVersion"] else "apis"
    kind = body["kind"].lower()
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
    inside = "" if kind in CLUSTER_WIDE else f"/namespaces/{SYSTEM}"
    return f"/{group}/{body['apiVersion']}{inside}/{plural}"


def pod_body(
    name: str,
    namespace: str,
    containers: tuple[str, ...],
    *,
    labels: dict[str, str] | None = None,
) -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "spec": {
            "nodeName": NODE,
            "containers": [{"name": c, "image": "localhost/busybox:1"} for c in containers],
        },
    }


def running(containers: tuple[str, ...]) -> JsonObject:
    """Return the status that a kubelet gives a pod whose containers run."""
    return {
        "phase": "Running",
        "containerStatuses": [
            {
                "name": name,
                "image": "localhost/busybox:1",
                "imageID": "sha256:0",
                "ready": True,
                "restartCount": 0,
                "containerID": f"containerd://{CONTAINER_ID}",
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }
            for name in containers
        ],
    }
