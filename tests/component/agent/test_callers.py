# SPDX-License-Identifier: Apache-2.0
"""Who may call: nobody but the operator, whatever the method."""

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from devicemount_agent_api.identity import Identity
from devicemount_agent_api.tls import agent_channel
from devicemount_agent_api.v1 import agent_pb2 as pb

from .conftest import Node
from .pki import Authority

METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["Agent"].methods}


async def called(node: Node, method: str, directory: Path) -> grpc.StatusCode:
    """Call with the certificate of that directory; say how it was answered."""
    described = METHODS[method]
    async with agent_channel(node.settings.listen, Identity.from_directory(directory)) as channel:
        call = channel.unary_unary(
            f"/{described.containing_service.full_name}/{method}",
            request_serializer=lambda _: b"",
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(None, timeout=2)
    return caught.value.code()


@pytest.mark.parametrize("method", METHODS)
async def test_the_agents_own_certificate_commands_nothing(node: Node, method: str) -> None:
    async with node.agent():
        code = await called(node, method, node.authority_of("devicemount-agent"))
        assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_name_that_only_resembles_the_operators_commands_nothing(node: Node) -> None:
    async with node.agent():
        code = await called(node, "List", node.authority_of("devicemount-operator.evil.example"))
        assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_certificate_of_another_authority_is_not_connected(
    node: Node, tmp_path: Path
) -> None:
    foreign = Authority.create("foreign").issue("devicemount-operator", tmp_path / "foreign")
    (foreign / "ca.crt").write_bytes((node.settings.tls_directory / "ca.crt").read_bytes())
    async with node.agent():
        assert await called(node, "List", foreign) in {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        }


async def test_no_certificate_is_not_connected(node: Node) -> None:
    authority = (node.settings.tls_directory / "ca.crt").read_bytes()
    credentials = grpc.ssl_channel_credentials(authority)
    options = [("grpc.ssl_target_name_override", "devicemount-agent")]
    async with (
        node.agent(),
        grpc.aio.secure_channel(node.settings.listen, credentials, options) as channel,
    ):
        call = channel.unary_unary("/devicemount.agent.v1.Agent/List")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=2)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def _no_key(request: pb.ApplyRequest) -> None:
    request.ClearField("key")


def _foreign_shadow(request: pb.ApplyRequest) -> None:
    request.shadow_pods[0].name = "dm-99999999-99999999-0"


def _ordinary_pod(request: pb.ApplyRequest) -> None:
    request.shadow_pods[0].name = "training-job-0"


def _no_epoch(request: pb.ApplyRequest) -> None:
    request.ClearField("epoch")


def _negative_count(request: pb.ApplyRequest) -> None:
    request.shadow_pods[0].resources["example.com/vcs"] = -1


def _no_shadow(request: pb.ApplyRequest) -> None:
    request.ClearField("shadow_pods")


def _odd_name(request: pb.ApplyRequest) -> None:
    request.target.container = "../../etc"


@pytest.mark.parametrize(
    "broken",
    [
        _no_key,
        _foreign_shadow,
        _ordinary_pod,
        _no_epoch,
        _negative_count,
        _no_shadow,
        _odd_name,
    ],
)
async def test_what_no_operator_of_ours_sends_is_not_allowed(
    node: Node, broken: Callable[[pb.ApplyRequest], None]
) -> None:
    target = node.target()
    async with node.agent() as agent:
        request = node.apply_request(target, node.reserved(target, "vcs1"))
        broken(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.stub.Apply(request, timeout=2)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert not agent.journal.ledger.seen


async def test_an_earlier_leader_is_refused_for_every_mount(node: Node) -> None:
    target, other = node.target(), node.target("other-0")
    async with node.agent():
        request = node.apply_request(target, node.reserved(target, "vcs1"))
        request.epoch.transitions = 1
        await node.stub.Apply(request, timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.apply(other, node.reserved(other, "vcsa1"))
        assert caught.value.code() is grpc.StatusCode.ABORTED
