# SPDX-License-Identifier: Apache-2.0
"""Raw JSON to and from the API server, over the session that `kubernetes.aio` configures. Nothing
else imports it.

Its typed calls cost 19 ms of CPU per mount (models built, validated and thrown away) and leave out
what errors say. So only configuration, credentials with their refresh, TLS and the pool are its
own; answers become dictionaries, and refusals classes of `errors`, by what the Status object says
and not by the number alone.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client import rest

from devicemount_operator import errors
from devicemount_operator.errors import ApiError, ForbiddenBy

JsonObject: TypeAlias = dict[str, Any]

IDLE_CONNECTION_S = (
    75.0  # below the API server's 90 s: a connection is never reused while it is being closed
)
CONNECT_TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 16 << 20  # five hundred ordinary objects are 3 MiB, one may be as large
MIN_RETRY_AFTER_S = 0.1
DEFAULT_RETRY_AFTER_S = 1.0  # 429 without the header, or with what is no number of seconds

# What the API server's own admission says (1.30 to 1.37), in its plug-ins' words.
_SENTENCES = (
    (re.compile("exceeded quota|failed quota"), ForbiddenBy.QUOTA),
    (re.compile("usage per (Container|Pod) is |limit to request ratio per "), ForbiddenBy.LIMITS),
    (re.compile("no PriorityClass with name .* was found"), ForbiddenBy.PRIORITY_GONE),
    (re.compile("priority admission controller computed"), ForbiddenBy.PRIORITY_DEFAULT),
    (re.compile("error looking up service account"), ForbiddenBy.ACCOUNT),
)

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"


class _WarmRestClient(rest.RESTClientObject):
    """Keeps idle connections: a handshake costs more than the request behind it."""

    def _create_pool_manager(self) -> aiohttp.ClientSession:
        """Connect to the API server itself: the library would obey HTTPS_PROXY, which means the way
        out of the cluster."""
        return aiohttp.ClientSession(connector=self._create_connector(), trust_env=False)

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(
            limit=self.maxsize, ssl=self.ssl_context, keepalive_timeout=IDLE_CONNECTION_S
        )


async def _configuration() -> Any:
    """Load KUBECONFIG where it is set, else the service account's."""
    configuration = client.Configuration()
    if path := os.environ.get("KUBECONFIG"):
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=path, client_configuration=configuration, persist_config=False
        )
    else:
        config.load_incluster_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration
        )
    return configuration


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the API server now, for another client than ours. Field names are kopf's."""

    server: str
    insecure: bool
    ca_path: str | None
    scheme: str | None
    token: str | None
    certificate_path: str | None
    private_key_path: str | None


class Transport:
    """One pool of warm connections to one API server."""

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self._rest = _WarmRestClient(configuration)

    @classmethod
    async def connect(cls) -> "Transport":
        return cls(await _configuration())

    async def close(self) -> None:
        await self._rest.close()

    def access(self) -> Access:
        """Return the credentials that our own requests would go out with."""
        given, header = self._configuration, self._configuration.api_key.get("BearerToken") or ""
        scheme, _, token = header.partition(" ")
        return Access(
            server=given.host,
            insecure=not given.verify_ssl,
            ca_path=given.ssl_ca_cert,
            scheme=scheme.capitalize() if token else None,
            token=token or None,
            certificate_path=given.cert_file,
            private_key_path=given.key_file,
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        body: JsonObject | None = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> JsonObject:
        """Return the answer's object.

        Where the server asks to wait, after that. Raises ApiError.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return await self._call(
                    method,
                    path,
                    timeout_s=timeout_s,
                    body=body,
                    content_type=content_type,
                    accept=accept,
                )
            except errors.TooManyRequests as error:
                if time.monotonic() + error.retry_after_s > deadline:
                    raise
                await asyncio.sleep(error.retry_after_s)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        body: JsonObject | None,
        content_type: str,
        accept: str,
    ) -> JsonObject:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            answer = await self._request(
                method,
                path,
                timeout=timeout,
                body=body,
                content_type=content_type,
                accept=accept,
            )
            text = await _read(answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            kind = errors.NotConnected if _is_cut(error) else errors.Unreachable
            raise kind(f"{method} {path}: {error or type(error).__name__}") from error
        if answer.status >= 300:  # noqa: PLR2004
            raise api_error(answer.status, _status_object(text), answer.headers)
        parsed: JsonObject = json.loads(text)
        return parsed

    async def watch(
        self, path: str, *, query: Mapping[str, str], silence_s: float, accept: str = JSON
    ) -> AsyncGenerator[JsonObject, None]:
        """Yield the events of one watch request until the server ends it.

        Raises ApiError; silence is Unreachable.
        """
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s
        )
        target = f"{path}?{urlencode({**query, 'watch': 'true', 'allowWatchBookmarks': 'true'})}"
        try:
            answer = await self._request("GET", target, timeout=timeout, accept=accept)
            if answer.status >= 300:  # noqa: PLR2004
                raise api_error(answer.status, _status_object(await answer.read()), answer.headers)
            try:
                async for line in _lines(answer.content.iter_any()):
                    yield _event(line)
            finally:
                answer.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.Unreachable(f"watch {path}: {error or type(error).__name__}") from error

    async def _request(
        self,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 (for the pool, per request)
        body: JsonObject | None = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> aiohttp.ClientResponse:
        headers = {
            "Content-Type": content_type,
            "Accept": accept,
            "User-Agent": "devicemount-operator",
        }
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        if token:
            headers["Authorization"] = token
        answer = await self._rest.request(  # type: ignore[no-untyped-call]
            method,
            self._configuration.host + path,
            headers=headers,
            body=body,
            _request_timeout=timeout,
        )
        response: aiohttp.ClientResponse = answer.response
        return response


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """Return the body. Raises TooLarge before it takes more memory than there is: what tenants put
    into their objects is bounded for each, and not for a page of them."""
    parts: list[bytes] = []
    length = 0
    async for chunk in answer.content.iter_any():
        parts.append(chunk)
        length += len(chunk)
        if length > MAX_ANSWER_BYTES:
            answer.close()
            raise errors.TooLarge(f"{answer.method} {answer.url.path}: more than {length} bytes")
    return b"".join(parts)


def _is_cut(error: Exception) -> bool:
    """Tell a connection that cannot be had from an answer that does not come."""
    if isinstance(error, TimeoutError):
        return isinstance(error, aiohttp.ConnectionTimeoutError)
    return isinstance(error, (aiohttp.ClientConnectionError, OSError))


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Split at newlines, of whatever length: aiohttp's own reader gives up at 128 KiB, and others
    may annotate a shadow pod with more."""
    parts: list[bytes] = []
    async for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join((*parts, end))
            parts.clear()
        parts.append(rest)
    if last := b"".join(parts):
        yield last


def _event(line: bytes) -> JsonObject:
    """Parse an event; half of one is what a stream that was cut ends with."""
    try:
        parsed: JsonObject = json.loads(line)
    except ValueError as error:
        raise errors.Unreachable(f"a watch ended within an event: {line[-80:]!r}") from error
    return parsed


def _status_object(text: bytes) -> JsonObject:
    """Return the Status of a refusal.

    For what is none (a proxy's page, "404 page not found") one with its text.
    """
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict):
        return parsed
    return {"message": text.decode(errors="replace")[:500]}


def api_error(code: int, status: JsonObject, headers: Mapping[str, str]) -> ApiError:
    """Return the class of a refusal."""
    reason = str(status.get("reason") or "")
    message = str(status.get("message") or reason or code)
    if code == 429:  # noqa: PLR2004
        wait_s = _retry_after_s(headers)
        return errors.TooManyRequests(message, status=code, retry_after_s=wait_s)
    if code in (400, 403, 422) and (by := _forbidden_by(status, message)):
        return errors.Forbidden(message, status=code, by=by)
    if code >= 500 and "failed calling webhook" in message:  # noqa: PLR2004
        return errors.WebhookUnavailable(message, status=code)
    return _kind(code, status, reason)(message, status=code)


def _kind(code: int, status: JsonObject, reason: str) -> type[ApiError]:
    match code:
        case 404:
            named = bool((status.get("details") or {}).get("name"))
            kind: type[ApiError] = errors.NotFound if named else errors.ResourceNotServed
        case 409:
            kind = errors.AlreadyExists if reason == "AlreadyExists" else errors.Conflict
        case 410:
            kind = errors.Expired
        case 400 | 422:
            kind = errors.Invalid
        case _:
            kind = errors.Unreachable if code >= 500 else ApiError  # noqa: PLR2004
    return kind


def _forbidden_by(status: JsonObject, message: str) -> ForbiddenBy | None:
    """Tell who refuses.

    A policy may answer with any code, so the sentence decides (stable since Kubernetes 1.0).
    """
    causes = {cause.get("reason") for cause in (status.get("details") or {}).get("causes") or ()}
    if "NamespaceTerminating" in causes:
        return ForbiddenBy.NAMESPACE
    for sentence, by in _SENTENCES:
        if sentence.search(message):
            return by
    if " cannot " in message and ' resource "' in message and "User " in message:
        return ForbiddenBy.RBAC
    if status.get("reason") == "Forbidden" or "is forbidden: " in message or " denied " in message:
        return ForbiddenBy.POLICY
    return None


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Return the pause that is asked for; "0" is no leave to try without end."""
    asked = headers.get("Retry-After", "")
    return max(float(asked), MIN_RETRY_AFTER_S) if asked.isdecimal() else DEFAULT_RETRY_AFTER_S


async def sleep_for(error: ApiError, *, otherwise_s: float) -> None:
    """Wait as long as the server asks, else `otherwise_s`."""
    asked = error.retry_after_s if isinstance(error, errors.TooManyRequests) else 0.0
    await asyncio.sleep(max(asked, otherwise_s))
