# SPDX-License-Identifier: Apache-2.0
"""gRPC in and out: who calls, what an error is on the wire. No decision about mounts.

Only the operator is served, whatever the method: a certificate of the right authority is not
enough, since every agent has one. How long a call may wait is the caller's, within the bound that
tombstones rely on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio

from devicemount_agent import errors
from devicemount_agent.allocation.facts import ResourceFacts
from devicemount_agent.logs import line, plain
from devicemount_agent.model import ResourceName
from devicemount_agent.mounts import Mounts
from devicemount_agent.node import NodeFacts
from devicemount_agent.requests import MountKey
from devicemount_agent.wire import (
    from_facts,
    from_state,
    from_states,
    to_apply,
    to_remove,
    to_resources,
)
from devicemount_agent_api.errors import REASON_KEY
from devicemount_agent_api.tls import KEEPALIVE_MS, Mounted, is_operator, server_credentials
from devicemount_agent_api.v1 import agent_pb2 as pb
from devicemount_agent_api.v1 import agent_pb2_grpc

WAIT_LIMIT_S = 30.0  # no call lives longer: ledger.TOMBSTONE_AGE_NS relies on it
ANSWER_BEFORE_S = 0.5  # of the caller's deadline: WAITING says more than DEADLINE_EXCEEDED
MESSAGE_LIMIT_BYTES = 1 << 20  # 64 shadow pods need some 20 kB
CONNECTION_AGE_MS = 3_600_000  # so that no connection outlives its certificate for long
CONNECTION_GRACE_MS = 60_000  # then for calls under way, WAIT_LIMIT_S; a Watch is begun anew
SENTENCE_LIMIT = 768  # characters; gRPC takes 8 kB for all that ends a call, up to 9 for each
CALLS_LIMIT = 1024  # an Apply waits for each of 500 pods at most

CODES: dict[type[errors.DeviceMountError], grpc.StatusCode] = {
    errors.TargetNotRunning: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ContainerMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Insufficient: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AllocationUnknown: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.EnvFileNeeded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnsupportedResource: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PathConflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnsupportedRuntime: grpc.StatusCode.FAILED_PRECONDITION,
    errors.FilterBlocked: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ReservationLost: grpc.StatusCode.ABORTED,
    errors.StaleRequest: grpc.StatusCode.ABORTED,
    errors.StillReserved: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NodeUnavailable: grpc.StatusCode.UNAVAILABLE,
}

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")
About: TypeAlias = Callable[[ResourceName], ResourceFacts]
Node: TypeAlias = Callable[[], Awaitable[NodeFacts]]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class AgentService(agent_pb2_grpc.AgentServicer):
    """The contract."""

    def __init__(self, mounts: Mounts, about: About, node: Node) -> None:
        self._mounts = mounts
        self._about = about
        self._node = node

    async def Apply(
        self,
        request: pb.ApplyRequest,
        context: "grpc.aio.ServicerContext[pb.ApplyRequest, pb.MountState]",
    ) -> pb.MountState:
        state = self._mounts.apply(to_apply(request), deadline=_deadline(context))
        return from_state(await state)

    async def Remove(
        self,
        request: pb.RemoveRequest,
        context: "grpc.aio.ServicerContext[pb.RemoveRequest, pb.MountState]",
    ) -> pb.MountState:
        return from_state(await self._mounts.remove(to_remove(request)))

    async def List(
        self,
        request: pb.ListRequest,
        context: "grpc.aio.ServicerContext[pb.ListRequest, pb.ListResponse]",
    ) -> pb.ListResponse:
        return from_states(self._mounts.states())

    async def Node(
        self,
        request: pb.NodeRequest,
        context: "grpc.aio.ServicerContext[pb.NodeRequest, pb.NodeState]",
    ) -> pb.NodeState:
        return from_facts(await self._node(), map(self._about, to_resources(request)))

    async def Watch(
        self,
        request: pb.WatchRequest,
        context: "grpc.aio.ServicerContext[pb.WatchRequest, pb.WatchResponse]",
    ) -> AsyncIterator[pb.WatchResponse]:
        """Tell all, a mark, then what changes, for as long as the caller and this agent live."""
        told: dict[MountKey, pb.MountState] = {}
        with self._mounts.changes.watched() as watcher:
            for state in self._mounts.states():
                told[state.key] = from_state(state)
                yield pb.WatchResponse(mount=told[state.key])
            yield pb.WatchResponse()
            while changed := await watcher.changed():
                for key in changed:
                    said = from_state(self._mounts.state(key))
                    if said == told.get(key):
                        continue
                    told[key] = said
                    yield pb.WatchResponse(mount=said)
                    if said.phase == pb.REMOVED:
                        del told[key]


class OnlyTheOperator(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Stands before every method: refuses foreign callers, and says errors as the contract does."""

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler":
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: answered as such by the library
            return handler
        method = handler_call_details.method
        serve, stream = handler.unary_unary, handler.unary_stream

        async def guarded(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            await _check_caller(context, method)
            return await _told(serve(request, context), context, method)  # type: ignore[arg-type,misc]  # aio's

        async def guarded_stream(
            request: Any, context: "grpc.aio.ServicerContext[Any, Any]"
        ) -> AsyncIterator[Any]:
            await _check_caller(context, method)
            async for message in stream(request, context):  # type: ignore[misc,union-attr,arg-type]  # aio's
                yield message

        if stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                guarded_stream,
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            guarded,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


async def start(
    listen: str, identity: Mounted, mounts: Mounts, *, about: About, node: Node
) -> grpc.aio.Server:
    """Listen with the agent's certificate, of which there is one, and with what follows it."""
    server = grpc.aio.server(
        interceptors=[OnlyTheOperator()],
        options=[
            ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
            ("grpc.so_reuseport", 0),
            ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
            ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
            ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ],
        maximum_concurrent_rpcs=CALLS_LIMIT,
    )
    agent_pb2_grpc.add_AgentServicer_to_server(AgentService(mounts, about, node), server)
    server.add_secure_port(listen, await asyncio.to_thread(server_credentials, identity))
    await server.start()
    return server


async def _check_caller(context: "grpc.aio.ServicerContext[Any, Any]", method: str) -> None:
    if not is_operator(context.auth_context().get("x509_subject_alternative_name", ())):
        log.warning(line("refused", method=method, peer=context.peer()))
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "only the operator may call")


async def _told(
    answer: Awaitable[_Answer], context: "grpc.aio.ServicerContext[Any, Any]", method: str
) -> _Answer:
    """Return the answer, or end the call with the error's code, its sentence and its name."""
    try:
        return await _named(answer)
    except errors.DeviceMountError as error:
        reason = _reason(error)
        log.info(line("refused", method=method, reason=reason.__name__, error=error))
        await context.abort(
            CODES[reason],
            plain(str(error), limit=SENTENCE_LIMIT),
            trailing_metadata=((REASON_KEY, reason.__name__),),
        )
        raise AssertionError("abort raises") from error


async def _named(answer: Awaitable[_Answer]) -> _Answer:
    """Give an unforeseen error of the system the name that it has for others."""
    try:
        return await answer
    except OSError as error:
        log.exception(line("failed"))
        raise errors.NodeUnavailable(str(error)) from error


def _reason(error: errors.DeviceMountError) -> type[errors.DeviceMountError]:
    """Return the class that the table knows: the error's own, or the nearest above it."""
    return next(cls for cls in type(error).__mro__ if cls in CODES)


def _deadline(context: "grpc.aio.ServicerContext[Any, Any]") -> float:
    """Return until when an `Apply` may wait, in loop time."""
    remaining = context.time_remaining()
    wait = WAIT_LIMIT_S if remaining is None else min(remaining, WAIT_LIMIT_S)
    return asyncio.get_running_loop().time() + max(wait - ANSWER_BEFORE_S, 0.0)
