# SPDX-License-Identifier: Apache-2.0
"""What the API server's refusals mean; the sentences are Kubernetes 1.37's own."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import pytest
from aiohttp import ClientConnectionError, web
from kubernetes.aio import client
from kubernetes.aio.config import incluster_config

from devicemount_operator import errors
from devicemount_operator import transport as transports
from devicemount_operator.errors import ForbiddenBy
from devicemount_operator.reflector import CHUNK, Changed, Listed, Reflector, Selection, list_pages
from devicemount_operator.transport import Transport, api_error

NAMED = {"details": {"name": "dm", "kind": "devicemounts"}}


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        (404, {"reason": "NotFound", **NAMED}, errors.NotFound),
        (404, {"message": "404 page not found"}, errors.ResourceNotServed),
        (404, {"reason": "NotFound", "details": {}}, errors.ResourceNotServed),
        (409, {"reason": "AlreadyExists"}, errors.AlreadyExists),
        (409, {"reason": "Conflict"}, errors.Conflict),
        (410, {"reason": "Expired"}, errors.Expired),
        (422, {"reason": "Invalid", "message": "spec.x: Required value"}, errors.Invalid),
        (429, {"reason": "TooManyRequests"}, errors.TooManyRequests),
        (500, {"message": "etcdserver: request timed out"}, errors.Unreachable),
        (
            500,
            {
                "reason": "InternalError",
                "message": 'Internal error occurred: failed calling webhook "w.x.io": failed to '
                'call webhook: Post "https://w.x.svc:443/?timeout=10s": no endpoints available '
                'for service "w"',
            },
            errors.WebhookUnavailable,
        ),
        (401, {"reason": "Unauthorized"}, errors.ApiError),
    ],
)
def test_the_class_of_a_refusal(
    code: int, status: dict[str, Any], expected: type[errors.ApiError]
) -> None:
    assert type(api_error(code, status, {})) is expected


@pytest.mark.parametrize(
    ("code", "message", "by"),
    [
        (
            403,
            'pods "dm-1" is forbidden: exceeded quota: gpu, requested: requests.x.io/y=1, '
            "used: requests.x.io/y=1, limited: requests.x.io/y=1",
            ForbiddenBy.QUOTA,
        ),
        (
            403,
            'pods "dm-1" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot',
            ForbiddenBy.POLICY,
        ),
        (
            422,
            "pods \"dm-1\" is forbidden: ValidatingAdmissionPolicy 'only' with binding 'only' "
            "denied request: not here",
            ForbiddenBy.POLICY,
        ),
        (400, 'admission webhook "x.example.com" denied the request: no', ForbiddenBy.POLICY),
        (
            403,
            'pods is forbidden: User "system:serviceaccount:a:b" cannot create resource "pods" in '
            'API group "" in the namespace "c"',
            ForbiddenBy.RBAC,
        ),
        (
            403,
            'pods "dm-1" is forbidden: failed quota: q: must specify limits.ephemeral-storage '
            "for: hold",
            ForbiddenBy.QUOTA,
        ),
        (
            403,
            'pods "dm-1" is forbidden: minimum cpu usage per Container is 50m, but request is 1m',
            ForbiddenBy.LIMITS,
        ),
        (
            403,
            'pods "dm-1" is forbidden: cpu max limit to request ratio per Container is 1, but '
            "provided ratio is 200.000000",
            ForbiddenBy.LIMITS,
        ),
        (
            403,
            'pods "dm-1" is forbidden: no PriorityClass with name p was found',
            ForbiddenBy.PRIORITY_GONE,
        ),
        (
            403,
            'pods "dm-1" is forbidden: the integer value of priority (0) must not be provided in '
            "pod spec; priority admission controller computed 5000 from the given PriorityClass "
            "name",
            ForbiddenBy.PRIORITY_DEFAULT,
        ),
        (
            403,
            'pods "dm-1" is forbidden: error looking up service account a/default: serviceaccount '
            '"default" not found',
            ForbiddenBy.ACCOUNT,
        ),
    ],
    ids=[
        "quota",
        "Pod Security",
        "policy",
        "webhook",
        "RBAC",
        "a quota that asks for what is not said",
        "LimitRange: too small",
        "LimitRange: ratio",
        "a class that is gone",
        "a default that came later",
        "no service account",
    ],
)
def test_who_forbids(code: int, message: str, by: ForbiddenBy) -> None:
    error = api_error(code, {"reason": "Forbidden" if code == 403 else "", "message": message}, {})
    assert isinstance(error, errors.Forbidden)
    assert error.by is by


def test_a_namespace_that_is_ending_is_told_by_its_cause() -> None:
    status = {
        "reason": "Forbidden",
        "message": 'pods "dm-1" is forbidden: unable to create new content in namespace a',
        "details": {"name": "dm-1", "causes": [{"reason": "NamespaceTerminating"}]},
    }
    error = api_error(403, status, {})
    assert isinstance(error, errors.Forbidden)
    assert error.by is ForbiddenBy.NAMESPACE


class Server:
    """Answers requests with what the test has put down, in order."""

    def __init__(self) -> None:
        self.answers: list[web.Response | list[dict[str, Any]] | None] = []  # None: silence
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.query_string)
        answer = self.answers.pop(0)
        if isinstance(answer, web.Response):
            return answer
        stream = web.StreamResponse()
        await stream.prepare(request)
        if answer is None:
            await asyncio.Event().wait()
        for event in answer or ():
            await stream.write(json.dumps(event).encode() + b"\n")
        return stream


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, Transport]]:
    given = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", given.answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = client.Configuration()
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    transport = Transport(configuration)
    try:
        yield given, transport
    finally:
        await transport.close()
        await runner.cleanup()


async def test_a_request_waits_as_long_as_the_server_asks(server: tuple[Server, Transport]) -> None:
    given, transport = server
    wait = {"Retry-After": "0"}
    given.answers = [web.Response(status=429, headers=wait), web.json_response({"kind": "Pod"})]
    assert await transport.call("GET", "/pod", timeout_s=5) == {"kind": "Pod"}


async def test_a_request_does_not_wait_beyond_its_deadline(
    server: tuple[Server, Transport],
) -> None:
    given, transport = server
    given.answers = [web.Response(status=429, headers={"Retry-After": "60"})]
    with pytest.raises(errors.TooManyRequests) as refused:
        await transport.call("GET", "/pod", timeout_s=5)
    assert refused.value.retry_after_s == 60.0


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    configuration = client.Configuration()
    configuration.host = "http://127.0.0.1:9"
    transport = Transport(configuration)
    with pytest.raises(errors.Unreachable):
        await transport.call("GET", "/pod", timeout_s=5)
    await transport.close()


class Sent:
    """Notes what a request goes out with; nobody answers."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    async def request(self, _method: str, _url: str, *, headers: dict[str, str], **_: Any) -> Any:
        self.tokens.append(headers["Authorization"])
        raise ClientConnectionError

    async def close(self) -> None:
        pass


async def test_a_token_that_the_kubelet_has_renewed_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projected tokens live for an hour or less; the client reads the file each minute."""
    now = [datetime(2026, 1, 1)]
    clock = SimpleNamespace(now=lambda: now[0])
    for name, content in (("token", "one"), ("ca.crt", "-")):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(
        incluster_config, "datetime", SimpleNamespace(datetime=clock, timedelta=timedelta)
    )
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    sent = Sent()
    monkeypatch.setattr("devicemount_operator.transport._WarmRestClient", lambda _: sent)
    transport = await Transport.connect()
    for minutes, content in ((0, "one"), (2, "two")):
        now[0] += timedelta(minutes=minutes)
        (tmp_path / "token").write_text(content)
        with pytest.raises(errors.Unreachable):
            await transport.call("GET", "/pod", timeout_s=5)
        assert sent.tokens[-1].lower() == f"bearer {content}"
        assert transport.access().token == content, "so has kopf"
    await transport.close()


def pod(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": name, "resourceVersion": str(version)}}


def listing(version: int, *names: str) -> web.Response:
    items = [pod(name, version) for name in names]
    return web.json_response({"metadata": {"resourceVersion": str(version)}, "items": items})


async def test_a_reflector_goes_on_from_bookmarks_and_lists_again_after_410(
    server: tuple[Server, Transport],
) -> None:
    given, transport = server
    gone = {"type": "ERROR", "object": {"code": 410, "message": "too old"}}
    given.answers = [
        listing(1, "a"),
        [
            {"type": "ADDED", "object": pod("b", 2)},
            {"type": "BOOKMARK", "object": pod("", 7)},
        ],
        [{"type": "DELETED", "object": pod("a", 8)}, gone],
        listing(9, "b"),
        [{"type": "MODIFIED", "object": pod("b", 10)}],
    ]
    failures: list[errors.ApiError] = []
    reflector = Reflector(
        transport, Selection("/pods", "app=x"), timeout_s=5, failed=failures.append
    )
    seen: list[tuple[str, ...]] = []
    events = reflector.events()
    async for event in events:
        match event:
            case Listed(objects):
                seen.append(("LISTED", *(o.raw["metadata"]["name"] for o in objects)))
            case Changed(changed, deleted):
                seen.append(("DELETED" if deleted else "CHANGED", changed["metadata"]["name"]))
        if len(seen) == 5:
            break
    await events.aclose()
    assert seen == [
        ("LISTED", "a"),
        ("CHANGED", "b"),
        ("DELETED", "a"),
        ("LISTED", "b"),
        ("CHANGED", "b"),
    ]
    assert [type(error) for error in failures] == [errors.Expired]
    assert all("labelSelector=app%3Dx" in query for query in given.asked)
    assert "resourceVersion=7" in given.asked[2]


async def test_what_is_too_large_for_one_answer_is_listed_fewer_at_a_time(
    server: tuple[Server, Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, transport = server
    monkeypatch.setattr(transports, "MAX_ANSWER_BYTES", 1000)
    too_many = [f"{n}-{'x' * 100}" for n in range(20)]
    given.answers = [listing(1, *too_many), listing(1, *too_many), listing(1, "a")]
    listed = await list_pages(transport, Selection("/pods", ""), timeout_s=5.0)
    assert [packed.uid for packed in listed.objects] == ["a"]
    limits = [int(parse_qs(asked)["limit"][0]) for asked in given.asked]
    assert limits == [CHUNK, CHUNK // 8, CHUNK // 64]
    given.answers = [listing(1, *too_many) for _ in range(4)]
    with pytest.raises(errors.TooLarge):
        await list_pages(transport, Selection("/pods", ""), timeout_s=5.0)


async def test_a_silent_stream_is_a_dead_stream(server: tuple[Server, Transport]) -> None:
    given, transport = server
    given.answers = [listing(1), None, listing(2)]
    failures: list[errors.ApiError] = []
    reflector = Reflector(
        transport, Selection("/pods", ""), timeout_s=5, failed=failures.append, silence_s=0.05
    )
    events = reflector.events()
    assert [type(await anext(events)) for _ in range(2)] == [Listed, Listed]
    await events.aclose()
    assert [type(error) for error in failures] == [errors.Unreachable]


async def test_an_event_may_be_of_any_length(server: tuple[Server, Transport]) -> None:
    given, transport = server
    long = pod("a", 2)
    long["metadata"]["annotations"] = {"of-others": "x" * 250_000}
    given.answers = [
        [{"type": "ADDED", "object": pod("b", 1)}, {"type": "ADDED", "object": long}],
    ]
    seen = [event async for event in transport.watch("/pods", query={}, silence_s=5)]
    assert [event["object"]["metadata"]["name"] for event in seen] == ["b", "a"]
    assert seen[1]["object"] == long


async def test_half_an_event_is_a_stream_that_was_cut(server: tuple[Server, Transport]) -> None:
    given, transport = server
    given.answers = [web.Response(text='{"type": "ADDED", "obj')]
    with pytest.raises(errors.Unreachable):
        async for _ in transport.watch("/pods", query={}, silence_s=5):
            pass
