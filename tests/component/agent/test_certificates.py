# SPDX-License-Identifier: Apache-2.0
"""An agent whose certificates come late, change, or end: it starts, keeps what it granted, says
why."""

import asyncio
import datetime
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from chains import Link
from devicemount_agent.__main__ import Agent
from devicemount_agent_api.identity import Identity, utc_now
from devicemount_agent_api.tls import agent_channel
from devicemount_agent_api.v1 import agent_pb2 as pb
from devicemount_agent_api.v1 import agent_pb2_grpc
from devicemount_operator.handshake import explain, shake_hands

from .conftest import DEADLINE_S, RESOURCE, Node, Target
from .pki import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OPERATOR = "devicemount-operator"
SOON = datetime.timedelta(seconds=2)


def replace(directory: Path, authority: Authority, scratch: Path) -> None:
    """Overwrite a directory's files with newly issued ones of that authority."""
    for file in authority.issue("devicemount-agent", scratch).iterdir():
        (directory / file.name).write_bytes(file.read_bytes())


@asynccontextmanager
async def started(node: Node) -> "AsyncIterator[Agent]":
    """Run an agent without waiting until it serves."""
    stopped = asyncio.Event()
    agent = Agent(node.settings)
    running = asyncio.create_task(agent.run(stopped))
    try:
        yield agent
    finally:
        stopped.set()
        await running
        await agent.close()


async def readiness(node: Node) -> str:
    """Ask as the kubelet does; return status and reason."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.settings.health_port)
    except OSError:
        return ""
    writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return f"{head.split()[1]} {body.strip()}" if head else ""


async def eventually(node: Node, said: str) -> str:
    end = time.monotonic() + DEADLINE_S
    while said not in (answer := await readiness(node)):
        assert time.monotonic() < end, answer
        await asyncio.sleep(0.02)
    return answer


def can_open(target: Target) -> bool:
    """Open the granted device; its file goes too, a moment after the permission."""
    try:
        return target.box.inside.can_open("/dev/vcs1")
    except FileNotFoundError:
        return False


async def until_revoked(target: Target) -> None:
    end = time.monotonic() + DEADLINE_S
    while can_open(target):
        assert time.monotonic() < end, "the loss was not noticed"
        await asyncio.sleep(0.02)


async def listed(node: Node, identity: Identity) -> list[pb.MountState]:
    async with agent_channel(node.settings.listen, identity) as channel:
        stub = agent_pb2_grpc.AgentStub(channel)
        answer = await stub.List(pb.ListRequest(), timeout=3, wait_for_ready=True)  # type: ignore[misc]
        return list(answer.mounts)


def _none(directory: Path) -> None:
    for name in ("tls.key", "tls.crt", "ca.crt"):
        (directory / name).unlink()


def _nonsense(directory: Path) -> None:
    (directory / "tls.crt").write_bytes(b"nonsense")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_none, "503 {}/tls.key: No such file or directory"),
        (_nonsense, "503 in {}: tls.crt holds no certificate that can be read"),
    ],
)
async def test_without_certificates_it_recovers_and_watches_and_serves_when_they_come(
    node: Node, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    target = node.target()
    shadow = node.reserved(target, "vcs1")
    async with node.agent():
        await node.apply(target, shadow)
    spoil(node.settings.tls_directory)
    async with started(node):
        await eventually(node, said.format(node.settings.tls_directory))
        assert target.box.inside.can_open("/dev/vcs1")
        node.kubelet.forget(shadow.pod)
        competitor = node.shadow(target, 9).pod
        node.kubelet.choose(competitor, RESOURCE, {"vcs1": []}, container="competitor")
        await until_revoked(target)
        replace(node.settings.tls_directory, node.authority, tmp_path / "new")
        await eventually(node, "200 ok")
        (state,) = await listed(node, node.identity_of(OPERATOR))
        assert state.phase == pb.LOST_PHASE


async def test_a_renewed_authority_is_followed_without_a_restart(
    node: Node, tmp_path: Path
) -> None:
    new = Authority.create("new")
    operators = {
        name: Identity.from_directory(authority.issue(OPERATOR, tmp_path / name))
        for name, authority in (("old-operator", node.authority), ("new-operator", new))
    }
    target = node.target()
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        bundle = node.settings.tls_directory / "ca.crt"
        old = bundle.read_bytes()
        replace(node.settings.tls_directory, new, tmp_path / "new")
        bundle.write_bytes(bundle.read_bytes() + old)
        trusting_both = bundle.read_bytes()
        for one in operators.values():
            both = Identity.from_pem(key=one.key, chain=one.chain, authorities=trusting_both)
            (state,) = await listed(node, both)
            assert state.phase == pb.GRANTED
        with pytest.raises(grpc.aio.AioRpcError):  # it shows the new one at once
            await listed(node, operators["old-operator"])
        assert target.box.inside.can_open("/dev/vcs1")


async def test_certificates_that_expire_under_a_running_agent_are_named_and_the_device_opens(
    node: Node, tmp_path: Path
) -> None:
    target, ours = node.target(), node.identity_of(OPERATOR)
    port = int(node.settings.listen.rpartition(":")[2])
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        signing = Link(node.authority.certificate, node.authority.key)
        short = signing.leaf("devicemount-agent", until=utc_now() + SOON)
        (node.settings.tls_directory / "tls.crt").write_bytes(short.chain_pem)
        (node.settings.tls_directory / "tls.key").write_bytes(short.key_pem)
        await eventually(node, f"503 the certificate in {node.settings.tls_directory} expired at ")
        hands = await asyncio.to_thread(shake_hands, "127.0.0.1", port, ours)
        said = explain(hands, ours, node="n1")
        assert said.startswith("the certificate of the agent on node n1 expired at ")
        assert target.box.inside.can_open("/dev/vcs1")
        replace(node.settings.tls_directory, node.authority, tmp_path / "new")
        await eventually(node, "200 ok")
        (state,) = await listed(node, ours)
        assert state.phase == pb.GRANTED
        assert target.box.inside.can_open("/dev/vcs1")
