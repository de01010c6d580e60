# SPDX-License-Identifier: Apache-2.0
"""One warm channel per node to its agent. With `messages` the only one to import its contract.

Requests go out with this operator's epoch and a revision that rises with each of them, so that an
agent never acts on what was decided earlier. What agents say becomes the plain types that `decide`
reads; what they refuse, and a channel that does not work, an AgentError with the reason of the
table.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import grpc
import grpc.aio

from devicemount_agent_api import tls
from devicemount_agent_api.errors import reason_of
from devicemount_agent_api.identity import Identity
from devicemount_agent_api.v1 import agent_pb2, agent_pb2_grpc
from devicemount_operator.decide.decision import RemovePolicy
from devicemount_operator.decide.observation import (
    ContainerID,
    NodeName,
    Place,
    PodUID,
    ResourceFacts,
)
from devicemount_operator.election import Epoch
from devicemount_operator.errors import DeviceMountError
from devicemount_operator.handshake import Handshake, explain, shake_hands
from devicemount_operator.messages import MountGrants, mount_grants, resource_facts
from devicemount_operator.reasons import Reason, trouble

Answer = TypeVar("Answer")

LOOK_S = 3.0  # many dead nodes share few threads: no call waits longer to learn why one is silent
REMOVES_AT_ONCE = 16  # on one node: each looks at every process there
CONNECT_S = 2.0  # a restarted agent is back within it; the deadline of a call is for its work

_POLICIES: "Mapping[RemovePolicy, agent_pb2.Policy.ValueType]" = {
    RemovePolicy.WAIT: agent_pb2.WAIT,
    RemovePolicy.TERMINATE: agent_pb2.TERMINATE,
    RemovePolicy.LOST: agent_pb2.LOST,
}


class WatchUnknown(DeviceMountError):
    """An agent that is older than the stream."""


class AgentError(DeviceMountError):
    """An agent refused a request, or could not be asked (AgentUnavailable)."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoIdentity(AgentError):
    """We have no certificate to ask with: that no agent answers says nothing about any."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.AGENT_UNAVAILABLE, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyShadow:
    """A shadow pod whose devices are to be grafted."""

    name: str
    uid: PodUID
    resources: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyCall:
    """What an agent needs in order to graft a mount's devices."""

    mount_uid: str
    mount_name: str
    namespace: str
    pod_name: str
    container: str
    container_id: ContainerID | None
    place: Place
    shadows: tuple[ApplyShadow, ...]  # all that stand: what it omits, the agent takes for lost
    accept_env_file: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveCall:
    """Which devices to take back and how."""

    mount_uid: str
    place: Place
    policy: RemovePolicy
    shadow_uids: tuple[PodUID, ...]  # empty: all
    grace_s: int  # of TERMINATE
    include_main: bool  # of TERMINATE


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAbout:
    """What a node is, as its agent says; an older agent leaves it empty."""

    cgroup_mode: str
    kernel: str
    runtime: str
    boot_id: str
    version: str  # of the agent


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """In seconds, connecting not counted."""

    apply_s: float
    remove_s: float
    list_s: float


@dataclass(slots=True)
class _Peer:
    ip: str
    address: str
    channel: grpc.aio.Channel
    stub: "agent_pb2_grpc.AgentAsyncStub"
    look: "asyncio.Future[Handshake] | None" = None  # of one who found it silent


class Agents:
    """The node agents that have an address now."""

    def __init__(self, *, epoch: Epoch, port: int, deadlines: Deadlines) -> None:
        self._epoch = agent_pb2.Epoch(
            lease_created_ns=epoch.lease_created_ns,
            lease_uid=epoch.lease_uid,
            transitions=epoch.transitions,
        )
        self._port = port
        self._deadlines = deadlines
        self._revisions = itertools.count()
        self._identity: Identity | None = None
        self._lacking = "the operator has no certificate yet"
        self._ips: dict[NodeName, str] = {}
        self._peers: dict[NodeName, _Peer] = {}  # of those that have an address, all or none
        self._retiring: set[asyncio.Task[None]] = set()
        self._removing: dict[NodeName, asyncio.Semaphore] = {}
        self._boots: dict[NodeName, str] = {}  # as agents said
        self._former: dict[NodeName, str] = {}  # addresses that agents had whose pods are gone
        self._listed: dict[NodeName, dict[bytes, MountGrants]] = {}  # as its agent said last

    def nodes(self) -> frozenset[NodeName]:
        """Return the nodes whose agent has an address."""
        return frozenset(self._ips)

    # Certificates

    def use(self, identity: Identity) -> None:
        """Connect anew with this; calls in flight end on the connection that they have."""
        if identity == self._identity:
            return
        self._identity = identity
        for peer in self._peers.values():
            self._retire(peer)
        self._peers = {node: self._connect(ip, identity) for node, ip in self._ips.items()}

    def lack(self, why: str) -> None:
        """Say why there is no identity to use, for those who would need one."""
        self._lacking = why or self._lacking

    def keep_warm(self) -> None:
        """Connect again where an agent has ended an old connection and nobody has called since."""
        for peer in self._peers.values():
            peer.channel.get_state(try_to_connect=True)

    async def shake_hands(self) -> dict[NodeName, Handshake]:
        """Return what each agent shows."""
        if (identity := self._identity) is None:
            return {}
        ips = dict(self._ips)
        looks = (asyncio.to_thread(shake_hands, ip, self._port, identity) for ip in ips.values())
        return dict(zip(ips, await asyncio.gather(*looks), strict=True))

    async def moved(self, node: NodeName, ip: str) -> None:
        """Use this address for the node from now on, and connect before it is needed."""
        if self._ips.get(node) == ip:
            return
        await self.left(node)
        self._former.pop(node, None)
        self._ips[node] = ip
        if self._identity is not None:
            self._peers[node] = self._connect(ip, self._identity)

    async def left(self, node: NodeName) -> None:
        """Forget the node's agent; calls in flight end as AgentUnavailable."""
        self._listed.pop(node, None)
        if (ip := self._ips.pop(node, None)) is not None:
            self._former[node] = ip
        if (peer := self._peers.pop(node, None)) is not None:
            await peer.channel.close(grace=None)

    async def close(self) -> None:
        for node in tuple(self._ips):
            await self.left(node)
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    def _connect(self, ip: str, identity: Identity) -> _Peer:
        address = f"[{ip}]:{self._port}" if ":" in ip else f"{ip}:{self._port}"
        channel = tls.agent_channel(address, identity)
        channel.get_state(try_to_connect=True)
        return _Peer(ip, address, channel, agent_pb2_grpc.AgentStub(channel))

    def _retire(self, peer: _Peer) -> None:
        task = asyncio.ensure_future(peer.channel.close(grace=self._deadlines.apply_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def apply(self, call: ApplyCall) -> MountGrants:
        """Return the state once the devices are usable in the target. Raises AgentError."""
        request = agent_pb2.ApplyRequest(
            key=_key(call.mount_uid, call.place),
            mount_name=call.mount_name,
            target=agent_pb2.Target(
                namespace=call.namespace,
                pod_name=call.pod_name,
                container=call.container,
                container_id=call.container_id or "",
            ),
            shadow_pods=[
                agent_pb2.ShadowPod(
                    name=shadow.name, uid=shadow.uid, resources=dict(shadow.resources)
                )
                for shadow in call.shadows
            ],
            epoch=self._epoch,
            revision=next(self._revisions),
            accept_env_file=call.accept_env_file,
        )
        node, timeout_s = call.place.node, self._deadlines.apply_s
        state = await self._ask(
            node, lambda stub: stub.Apply(request, timeout=timeout_s, wait_for_ready=True)
        )
        return mount_grants(state, node=node)

    async def remove(self, call: RemoveCall) -> MountGrants:
        """Return the state after the release.

        REMOVED, or BUSY with the holders. Raises AgentError. A node searches for the holders of so
        many at once and no more; what is lost does not wait, it may be another's already.
        """
        if call.policy is RemovePolicy.LOST:
            return await self._remove(call)
        node = call.place.node
        async with self._removing.setdefault(node, asyncio.Semaphore(REMOVES_AT_ONCE)):
            return await self._remove(call)

    async def _remove(self, call: RemoveCall) -> MountGrants:
        request = agent_pb2.RemoveRequest(
            key=_key(call.mount_uid, call.place),
            shadow_uids=call.shadow_uids,
            policy=_POLICIES[call.policy],
            grace_seconds=call.grace_s,
            include_main_process=call.include_main,
            epoch=self._epoch,
            revision=next(self._revisions),
        )
        node, timeout_s = call.place.node, self._deadlines.remove_s
        ask = self._ask if node in self._ips else self._ask_former
        state = await ask(
            node, lambda stub: stub.Remove(request, timeout=timeout_s, wait_for_ready=True)
        )
        return mount_grants(state, node=node)

    async def list(self, node: NodeName) -> tuple[MountGrants, ...]:
        """Return every mount that the node's agent knows. Raises AgentError.

        What it has said before in the same words is what it was: most of it, again and again.
        """
        request, timeout_s = agent_pb2.ListRequest(), self._deadlines.list_s
        answer = await self._ask(
            node, lambda stub: stub.List(request, timeout=timeout_s, wait_for_ready=True)
        )
        before = self._listed.get(node, {})
        said = {state.SerializeToString(deterministic=True): state for state in answer.mounts}
        self._listed[node] = {
            words: before.get(words) or mount_grants(state, node=node)
            for words, state in said.items()
        }
        return tuple(self._listed[node].values())

    async def watch(self, node: NodeName) -> AsyncGenerator[MountGrants | None, None]:
        """Yield every mount, then None, then each whose state has changed.

        It never ends but by an error: AgentError, or WatchUnknown.
        """
        request = agent_pb2.WatchRequest()

        async def open_stream(
            stub: "agent_pb2_grpc.AgentAsyncStub",
        ) -> "grpc.aio.UnaryStreamCall[agent_pb2.WatchRequest, agent_pb2.WatchResponse]":
            return stub.Watch(request, wait_for_ready=True)

        stream = await self._ask(node, open_stream)
        try:
            async for said in stream:
                message = _read(said, node=node)
                is_mark = not message.HasField("mount")
                yield None if is_mark else mount_grants(message.mount, node=node)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise WatchUnknown(f"the agent of node {node} offers no stream") from error
            raise _agent_error(error, node=node) from error
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            closed = f"the channel to the agent of node {node} was closed"
            raise AgentError(Reason.AGENT_UNAVAILABLE, closed) from error
        finally:
            stream.cancel()
        raise AgentError(Reason.AGENT_UNAVAILABLE, f"the agent of node {node} ended its stream")

    async def about(self, node: NodeName) -> NodeAbout:
        """Return what the node is and which version its agent has. Raises AgentError."""
        request, timeout_s = agent_pb2.NodeRequest(), self._deadlines.list_s
        said = await self._ask(node, lambda stub: _node(stub, request, timeout_s=timeout_s))
        if said.boot_id:
            self._boots[node] = said.boot_id
        return NodeAbout(
            cgroup_mode=said.cgroup_mode,
            kernel=said.kernel,
            runtime=said.runtime,
            boot_id=said.boot_id,
            version=said.version,
        )

    async def facts(self, node: NodeName, resources: Iterable[str]) -> tuple[ResourceFacts, ...]:
        """Return what the node says of these resources; nothing where its agent is too old to be
        asked. Raises AgentError."""
        request = agent_pb2.NodeRequest(resources=resources)
        timeout_s = self._deadlines.list_s
        answer = await self._ask(node, lambda stub: _node(stub, request, timeout_s=timeout_s))
        return tuple(resource_facts(state) for state in answer.resources)

    async def _ask(
        self,
        node: NodeName,
        call: "Callable[[agent_pb2_grpc.AgentAsyncStub], Awaitable[Answer]]",
    ) -> Answer:
        """Connect if need be, and call: a dead node is told within CONNECT_S. Raises AgentError."""
        if node not in self._ips:
            raise AgentError(Reason.AGENT_UNAVAILABLE, f"no agent runs on node {node}")
        if (peer := self._peers.get(node)) is None:
            raise NoIdentity(self._lacking)
        try:
            if peer.channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
                async with asyncio.timeout(CONNECT_S):
                    await peer.channel.channel_ready()
            return _read(await call(peer.stub), node=node)
        except TimeoutError as error:
            message = await self._silence(node, peer)
            raise AgentError(Reason.AGENT_UNAVAILABLE, message) from error
        except (asyncio.CancelledError, grpc.aio.UsageError) as error:
            if _is_cancelled():
                raise
            if isinstance(error, grpc.aio.UsageError) and self._is_replaced(node, peer):
                return await self._ask(node, call)
            message = f"the agent of node {node} left {peer.address}"
            raise AgentError(Reason.AGENT_UNAVAILABLE, message) from error
        except grpc.aio.AioRpcError as error:
            raise _agent_error(error, node=node) from error

    async def _ask_former(
        self,
        node: NodeName,
        call: "Callable[[agent_pb2_grpc.AgentAsyncStub], Awaitable[Answer]]",
    ) -> Answer:
        """Call where the node's agent was last: its pod's object goes with the Node's, and both may
        live on. The address may be another node's by now, which the boot tells. Raises AgentError.
        """
        ip, boot_id, identity = self._former.get(node), self._boots.get(node), self._identity
        nobody = AgentError(Reason.AGENT_UNAVAILABLE, f"no agent runs on node {node}")
        if identity is None:
            raise NoIdentity(self._lacking)
        if ip is None or boot_id is None:
            raise nobody
        peer = self._connect(ip, identity)
        try:
            async with asyncio.timeout(CONNECT_S):
                await peer.channel.channel_ready()
                request, timeout_s = agent_pb2.NodeRequest(), self._deadlines.list_s
                said = await _node(peer.stub, request, timeout_s=timeout_s)
            if said.boot_id != boot_id:
                raise nobody
            return _read(await call(peer.stub), node=node)
        except TimeoutError as error:
            raise nobody from error
        except grpc.aio.AioRpcError as error:
            raise _agent_error(error, node=node) from error
        finally:
            await peer.channel.close(grace=None)

    def _is_replaced(self, node: NodeName, peer: _Peer) -> bool:
        """Tell whether the same agent is reached by another channel now: nothing was sent yet."""
        now = self._peers.get(node)
        return now is not None and now is not peer and now.address == peer.address

    async def _silence(self, node: NodeName, peer: _Peer) -> str:
        """Say why an agent does not answer: certificates, if it is these."""
        silent = f"the agent of node {node} does not answer at {peer.address}"
        if (identity := self._identity) is None:
            return silent
        if peer.look is None or peer.look.done():  # one for all who wait for this agent
            look = asyncio.to_thread(shake_hands, peer.ip, self._port, identity)
            peer.look = asyncio.ensure_future(look)
        done, _ = await asyncio.wait({peer.look}, timeout=LOOK_S)
        return explain(peer.look.result(), identity, node=node) or silent if done else silent


async def _node(
    stub: "agent_pb2_grpc.AgentAsyncStub", request: agent_pb2.NodeRequest, *, timeout_s: float
) -> agent_pb2.NodeState:
    try:
        return await stub.Node(request, timeout=timeout_s, wait_for_ready=True)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return agent_pb2.NodeState()
        raise


def _read(answer: Answer | None, *, node: NodeName) -> Answer:
    """Return what was read; the library gives None for what is no message. Raises AgentError."""
    if answer is None:
        message = f"what the agent of node {node} says cannot be read"
        raise AgentError(Reason.AGENT_UNAVAILABLE, message)
    return answer


def _is_cancelled() -> bool:
    """Tell our own task's cancellation from that of a call whose channel was closed."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _agent_error(error: grpc.aio.AioRpcError, *, node: NodeName) -> AgentError:
    """An error with a reason is the agent's; any other the transport's, or the deadline's."""
    details = error.details() or error.code().name
    if (reason := trouble(reason_of(error))) is not None:
        return AgentError(reason, details)
    message = f"the agent of node {node}: {details} ({error.code().name})"
    return AgentError(Reason.AGENT_UNAVAILABLE, message)


def _key(mount_uid: str, place: Place) -> agent_pb2.MountKey:
    return agent_pb2.MountKey(mount_uid=mount_uid, pod_uid=place.target_uid)
