# SPDX-License-Identifier: Apache-2.0
"""The verbs that the operator needs of the API server, and no others: this list is what its RBAC
must allow.

Objects stay dictionaries here; who reads them parses them once. Every call has a deadline and
raises an ApiError whose class says what the server said, and nothing is written after the Lease's
deadline. Every write of ours to something that others may have replaced meanwhile carries a
precondition: a resourceVersion or a UID.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from devicemount_operator import errors, metrics, shadow_pod
from devicemount_operator.api.v1alpha1 import API_VERSION, PLURAL
from devicemount_operator.gate import Gate
from devicemount_operator.reflector import Listed, Selection, list_pages
from devicemount_operator.transport import MERGE_PATCH, JsonObject, Transport

COMPONENT_LABEL = "app.kubernetes.io/component"

LEASE_TIMEOUT_S = 5.0  # half of the time in which it must be renewed


class ObjectKey(NamedTuple):
    """A namespaced object of a kind that the context names."""

    namespace: str
    name: str


class Cluster:
    """Typed verbs over one transport."""

    def __init__(
        self, transport: Transport, *, timeout_s: float, left_s: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._left_s = left_s
        self._gate = Gate()

    # DeviceMounts

    async def list_mounts(self) -> Listed:
        """Return every DeviceMount. Raises ResourceNotServed where the CRD is missing."""
        every = Selection(f"/apis/{API_VERSION}/{PLURAL}", label_selector="")
        return await list_pages(self._transport, every, timeout_s=self._timeout_s)

    async def get_mount(self, key: ObjectKey) -> JsonObject:
        return await self._call("GET", _mount(key))

    async def replace_mount(self, key: ObjectKey, body: JsonObject) -> JsonObject:
        """Write spec and metadata.

        Conflict unless the body's resourceVersion is the current one.
        """
        return await self._call("PUT", _mount(key), body)

    async def delete_mount(self, key: ObjectKey, *, uid: str, version: str) -> JsonObject:
        """Delete exactly that object as it was decided on; Conflict if it is not so any more."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid, "resourceVersion": version},
        }
        return await self._call("DELETE", _mount(key), options)

    async def patch_status(
        self, key: ObjectKey, *, uid: str, status: Mapping[str, object]
    ) -> JsonObject:
        """Merge into the status of the object with that UID.

        Absent fields stay, nulls are taken away.
        """
        body = {"metadata": {"uid": uid}, "status": status}
        return await self._call("PATCH", f"{_mount(key)}/status", body, content_type=MERGE_PATCH)

    # Pods and nodes

    async def get_pod(self, key: ObjectKey) -> JsonObject:
        return await self._call("GET", _pod(key))

    async def create_pod(self, namespace: str, body: JsonObject) -> JsonObject:
        return await self._call("POST", f"/api/v1/namespaces/{namespace}/pods", body)

    async def delete_pod(self, key: ObjectKey, *, uid: str) -> None:
        """Delete exactly that pod, at once.

        The caller has proved that nothing needs its fence any more.
        """
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": uid},
        }
        await self._call("DELETE", _pod(key), options)

    async def get_node(self, name: str) -> JsonObject:
        return await self._call("GET", f"/api/v1/nodes/{name}")

    async def get_priority_class(self, name: str) -> JsonObject:
        return await self._call("GET", f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}")

    async def list_limit_ranges(self, namespace: str) -> list[JsonObject]:
        path = f"/api/v1/namespaces/{namespace}/limitranges"
        return list((await self._call("GET", path)).get("items") or ())

    # Secrets, of the operator's own namespace

    async def get_secret(self, key: ObjectKey) -> JsonObject:
        return await self._call("GET", _secret(key))

    async def create_secret(self, namespace: str, body: JsonObject) -> JsonObject:
        return await self._call("POST", f"/api/v1/namespaces/{namespace}/secrets", body)

    async def replace_secret(self, key: ObjectKey, body: JsonObject) -> JsonObject:
        """Write a Secret; Conflict unless the body's resourceVersion is the current one."""
        return await self._call("PUT", _secret(key), body)

    # Events

    async def create_event(self, namespace: str, body: JsonObject) -> JsonObject:
        return await self._call("POST", f"/api/v1/namespaces/{namespace}/events", body)

    async def patch_event(self, key: ObjectKey, body: JsonObject) -> JsonObject:
        path = f"/api/v1/namespaces/{key.namespace}/events/{key.name}"
        return await self._call("PATCH", path, body, content_type=MERGE_PATCH)

    async def _call(
        self,
        method: str,
        path: str,
        body: JsonObject | None = None,
        *,
        content_type: str = "application/json",
    ) -> JsonObject:
        timeout_s = self._timeout_s
        if method != "GET":
            timeout_s = min(timeout_s, self._left_s())  # of no use if it is carried out later
            if timeout_s <= 0:
                raise errors.LeaseLost(f"the Lease has run out: no {method} {path}")
        self._gate.check()
        try:
            answer = await self._transport.call(
                method, path, body=body, content_type=content_type, timeout_s=timeout_s
            )
        except errors.ApiError as error:
            self._gate.failed(error)
            raise
        finally:
            if method != "GET":
                metrics.api_writes.add(verb=method.lower())
        self._gate.answered()
        return answer


class Leases:
    """What the election needs; nothing else may be written without the Lease."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def get(self, key: ObjectKey) -> JsonObject:
        return await self._transport.call("GET", _lease(key), timeout_s=LEASE_TIMEOUT_S)

    async def create(self, key: ObjectKey, spec: JsonObject) -> JsonObject:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": key.namespace, "name": key.name},
            "spec": spec,
        }
        path = f"/apis/coordination.k8s.io/v1/namespaces/{key.namespace}/leases"
        return await self._transport.call("POST", path, body=body, timeout_s=LEASE_TIMEOUT_S)

    async def replace(self, key: ObjectKey, body: JsonObject) -> JsonObject:
        """Write the Lease; Conflict unless the body's resourceVersion is the current one."""
        return await self._transport.call("PUT", _lease(key), body=body, timeout_s=LEASE_TIMEOUT_S)


def shadow_pods() -> Selection:
    """Every shadow pod of every namespace."""
    return Selection("/api/v1/pods", shadow_pod.LABEL)


def agent_pods(namespace: str) -> Selection:
    """The agents' pods."""
    return Selection(f"/api/v1/namespaces/{namespace}/pods", f"{COMPONENT_LABEL}=agent")


def _mount(key: ObjectKey) -> str:
    return f"/apis/{API_VERSION}/namespaces/{key.namespace}/{PLURAL}/{key.name}"


def _pod(key: ObjectKey) -> str:
    return f"/api/v1/namespaces/{key.namespace}/pods/{key.name}"


def _secret(key: ObjectKey) -> str:
    return f"/api/v1/namespaces/{key.namespace}/secrets/{key.name}"


def _lease(key: ObjectKey) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{key.namespace}/leases/{key.name}"
