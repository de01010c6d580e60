# SPDX-License-Identifier: Apache-2.0
"""The API server in plain JSON, for the demonstration, the benchmark and the tests.

Objects are dictionaries as the API server sends them; paths are its own ("/api/v1/namespaces").
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kubernetes import config

Object = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"
REQUEST_TIMEOUT_S = 30.0
ACCOUNT_S = 30.0  # the controller manager needs milliseconds


class ApiError(Exception):
    """The API server's refusal."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class DeadlineExceeded(Exception):
    """A condition did not come true in time; carries the object as it was last seen."""


class Api:
    """One user's connection to the API server."""

    def __init__(self, kubeconfig: Path, *, impersonate: str = "") -> None:
        self._client = config.new_client_from_config(str(kubeconfig))  # type: ignore[no-untyped-call]
        self._headers = {"Impersonate-User": impersonate} if impersonate else {}

    def call(
        self, method: str, path: str, body: Object | None = None, *, kind: str = "application/json"
    ) -> Object:
        """Make one request and return the answer's object. Raises ApiError."""
        answer = self._client.rest_client.request(
            method,
            self._client.configuration.host + path,
            headers={"Content-Type": kind, "Accept": "application/json", **self._headers},
            body=body,
            _request_timeout=REQUEST_TIMEOUT_S,
        )
        text = answer.read()
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise ApiError(answer.status, _message(text))
        parsed: Object = json.loads(text)
        return parsed

    def get(self, path: str) -> Object | None:
        """Return the object, or None where there is none."""
        try:
            return self.call("GET", path)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def make_namespace(self, name: str, *, labels: Mapping[str, str] | None = None) -> str:
        """Make a namespace in which pods can be made; returns its path.

        No pod is accepted before the controller manager has made the default service account.
        """
        metadata = {"name": name, "labels": dict(labels or {})}
        self.call("POST", "/api/v1/namespaces", {"metadata": metadata})
        path = f"/api/v1/namespaces/{name}"
        self.until(f"{path}/serviceaccounts/default", bool, deadline_s=ACCOUNT_S, what="there")
        return path

    def delete(self, path: str, options: Object | None = None) -> None:
        """Delete the object; one that is gone already is fine."""
        try:
            self.call("DELETE", path, options or {})
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    def watch(self, path: str, *, deadline_s: float) -> Iterator[tuple[str, Object]]:
        """Yield (type, object) of a list's present and coming objects until the deadline."""
        listed = self.call("GET", path)
        for item in listed["items"]:
            yield "ADDED", item
        query = f"watch=1&resourceVersion={listed['metadata']['resourceVersion']}"
        with self._stream(f"{path}{'&' if '?' in path else '?'}{query}", deadline_s) as lines:
            for line in lines:
                event = json.loads(line)
                yield event["type"], event["object"]

    @contextlib.contextmanager
    def _stream(self, path: str, deadline_s: float) -> Iterator[Iterator[bytes]]:
        answer = self._client.rest_client.pool_manager.request(
            "GET",
            f"{self._client.configuration.host}{path}&timeoutSeconds={int(deadline_s) + 1}",
            headers={"Accept": "application/json", **self._headers},
            preload_content=False,
        )
        try:
            yield iter(answer)
        finally:
            answer.close()

    def until(
        self, path: str, test: Callable[[Object | None], bool], *, deadline_s: float, what: str
    ) -> Object | None:
        """Read the object again and again until the test holds; raise DeadlineExceeded."""
        end = time.monotonic() + deadline_s
        while True:
            found = self.get(path)
            if test(found):
                return found
            if time.monotonic() > end:
                seen = json.dumps((found or {}).get("status", found), indent=1)
                raise DeadlineExceeded(f"{path}: not {what} within {deadline_s:g} s; last: {seen}")
            time.sleep(0.05)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def pod_path(namespace: str, name: str = "") -> str:
    """Return the path of a pod, or of all of a namespace."""
    return f"/api/v1/namespaces/{namespace}/pods{'/' + name if name else ''}"


def mount_path(namespace: str, name: str = "") -> str:
    """Return the path of a DeviceMount, or of all of a namespace."""
    group = "/apis/devicemount.io/v1alpha1"
    return f"{group}/namespaces/{namespace}/devicemounts{'/' + name if name else ''}"


def condition(mount: Object | None, name: str) -> Object:
    """Return the condition of that name, or an empty one."""
    conditions = (mount or {}).get("status", {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == name), {})


def is_ready(mount: Object | None) -> bool:
    """Tell whether the DeviceMount's condition Ready is true for its present generation."""
    ready = condition(mount, "Ready")
    return (
        mount is not None
        and ready.get("status") == "True"
        and ready.get("observedGeneration") == mount["metadata"]["generation"]
    )
