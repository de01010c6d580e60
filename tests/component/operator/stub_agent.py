# SPDX-License-Identifier: Apache-2.0
"""An agent that grafts nothing: a real gRPC server with real mTLS that says what the test tells it
to say."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from devicemount_agent_api import tls
from devicemount_agent_api.errors import REASON_KEY
from devicemount_agent_api.identity import MountedIdentity
from devicemount_agent_api.v1 import agent_pb2, agent_pb2_grpc
from devicemount_testbed import pki

Context = grpc.aio.ServicerContext[Any, Any]

LOOP0 = agent_pb2.Device(
    resource="testbed.devicemount.io/loop",
    id="loop0",
    nodes=[agent_pb2.Node(path="/dev/loop0", type="b", major=7, minor=0, access="rw")],
)
CONTAINER_ID = "c" * 64
GRANTED_NS = 1_800_000_000_000_000_000


@dataclass
class StubAgent(agent_pb2_grpc.AgentServicer):
    """Grants at once unless `gate` is cleared.

    `holders` make it busy; `refusal` makes Apply fail.
    """

    port: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    holders: list[agent_pb2.Holder] = field(default_factory=list)
    refusal: tuple[grpc.StatusCode, str, str] | None = None
    applies: list[agent_pb2.ApplyRequest] = field(default_factory=list)
    removes: list[agent_pb2.RemoveRequest] = field(default_factory=list)
    waiting: set[asyncio.Event] = field(default_factory=set)
    lists: int = 0
    profile: agent_pb2.ResourceState | None = None  # None: an agent that does not know the call
    node: agent_pb2.NodeState | None = None
    node_calls: int = 0  # about resources
    streams: bool = True  # False: an agent that does not know Watch
    is_mute: bool = False  # its stream lives and says nothing
    watches: int = 0
    listeners: set["asyncio.Queue[agent_pb2.WatchResponse | None]"] = field(default_factory=set)
    states: dict[tuple[str, str], agent_pb2.MountState] = field(default_factory=dict)

    async def Apply(
        self, request: agent_pb2.ApplyRequest, context: Context
    ) -> agent_pb2.MountState:
        self.applies.append(request)
        if self.refusal is not None:
            code, reason, text = self.refusal
            await context.abort(code, text, ((REASON_KEY, reason),))
        removed = asyncio.Event()
        self.waiting.add(removed)
        try:
            await _first(self.gate, removed)
        finally:
            self.waiting.discard(removed)
        if removed.is_set():
            text = "a Remove came after it"
            await context.abort(grpc.StatusCode.ABORTED, text, ((REASON_KEY, "StaleRequest"),))
        return self._say(request.key, request.shadow_pods, agent_pb2.GRANTED)

    async def Remove(
        self, request: agent_pb2.RemoveRequest, context: Context
    ) -> agent_pb2.MountState:
        self.removes.append(request)
        for removed in self.waiting:
            removed.set()
        known = self.states.get(_of(request.key))
        pods = [
            agent_pb2.ShadowPod(uid=s.uid, name=s.name)
            for s in (known.shadow_pods if known else ())
        ]
        if self.holders and request.policy == agent_pb2.WAIT:
            return self._say(request.key, pods, agent_pb2.BUSY)
        if self.holders and request.policy == agent_pb2.TERMINATE:
            return self._say(request.key, pods, agent_pb2.BUSY, granted_ns=0)
        self.states.pop(_of(request.key), None)
        self._tell(agent_pb2.MountState(key=request.key, phase=agent_pb2.REMOVED))
        return agent_pb2.MountState(
            key=request.key,
            phase=agent_pb2.REMOVED,
            shadow_pods=[
                agent_pb2.ShadowState(uid=uid, phase=agent_pb2.REMOVED)
                for uid in request.shadow_uids or [pod.uid for pod in pods]
            ],
        )

    async def List(
        self, request: agent_pb2.ListRequest, context: Context
    ) -> agent_pb2.ListResponse:
        self.lists += 1
        return agent_pb2.ListResponse(mounts=list(self.states.values()))

    async def Watch(
        self, request: agent_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[agent_pb2.WatchResponse]:
        if not self.streams:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such call")
        self.watches += 1
        messages: asyncio.Queue[agent_pb2.WatchResponse | None] = asyncio.Queue()
        self.listeners.add(messages)
        try:
            for state in tuple(self.states.values()):
                yield agent_pb2.WatchResponse(mount=state)
            yield agent_pb2.WatchResponse()
            while (message := await messages.get()) is not None:
                yield message
        finally:
            self.listeners.discard(messages)

    async def Node(self, request: agent_pb2.NodeRequest, context: Context) -> agent_pb2.NodeState:
        self.node_calls += bool(request.resources)
        if self.profile is None and self.node is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such call")
        said = self.node or agent_pb2.NodeState()
        for resource in request.resources:
            state = said.resources.add()
            state.CopyFrom(self.profile or agent_pb2.ResourceState())
            state.resource = resource
        return said

    def listed(self, *, times: int) -> Callable[[], Awaitable[bool]]:
        """Return what tells whether List was called so many times more."""
        enough = self.lists + times

        async def is_enough() -> bool:
            return self.lists >= enough

        return is_enough

    def say_of_all(self, phase: "agent_pb2.Phase.ValueType") -> None:
        """Change what is said of every mount."""

        def change(state: agent_pb2.MountState) -> None:
            state.phase = phase
            for shadow in state.shadow_pods:
                shadow.phase = phase

        self.change(change)

    def worry(self, *concerns: agent_pb2.Concern) -> None:
        """Change what is said to be amiss with every mount."""

        def change(state: agent_pb2.MountState) -> None:
            for shadow in state.shadow_pods:
                del shadow.concerns[:]
                shadow.concerns.extend(concerns)

        self.change(change)

    def change(self, change: Callable[[agent_pb2.MountState], None]) -> None:
        """Change every mount's state, and tell it."""
        for key, state in tuple(self.states.items()):
            changed = agent_pb2.MountState()
            changed.CopyFrom(state)
            change(changed)
            self.states[key] = changed
            self._tell(changed)

    def cut(self) -> None:
        """End every stream."""
        for messages in self.listeners:
            messages.put_nowait(None)

    def _tell(self, state: agent_pb2.MountState) -> None:
        if not self.is_mute:
            for messages in self.listeners:
                messages.put_nowait(agent_pb2.WatchResponse(mount=state))

    def _say(
        self,
        key: agent_pb2.MountKey,
        pods: Any,
        phase: "agent_pb2.Phase.ValueType",
        *,
        granted_ns: int = GRANTED_NS,
    ) -> agent_pb2.MountState:
        state = agent_pb2.MountState(
            key=key,
            container_id=CONTAINER_ID,
            phase=phase,
            granted_unix_ns=granted_ns,
            timings_us={"chosen": 100, "verified": 200},
            shadow_pods=[
                agent_pb2.ShadowState(
                    uid=pod.uid,
                    name=pod.name,
                    phase=phase,
                    devices=[LOOP0],
                    holders=self.holders,
                    holders_total=len(self.holders),
                )
                for pod in pods
            ],
        )
        self.states[_of(key)] = state
        self._tell(state)
        return state


async def _first(*events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _of(key: agent_pb2.MountKey) -> tuple[str, str]:
    return key.mount_uid, key.pod_uid


@asynccontextmanager
async def serving(
    certificates: Path, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[StubAgent]:
    """Serve a stub agent until the block ends; its gate is open."""
    agent = StubAgent()
    agent.gate.set()
    pings = ("grpc.http2.min_ping_interval_without_data_ms", 100)  # a test may be in a hurry
    server = grpc.aio.server(options=[pings])
    agent_pb2_grpc.add_AgentServicer_to_server(agent, server)
    credentials = tls.server_credentials(MountedIdentity(certificates / "agent"))
    agent.port = server.add_secure_port(f"{host}:{port}", credentials)
    await server.start()
    try:
        yield agent
    finally:
        await server.stop(grace=None)


def make_certificates(directory: Path) -> Path:
    """Make directories `agent` and `operator` as their Secrets would be mounted."""
    authority = pki.make_authority(directory, "ca")
    for name, usage in (("agent", pki.SERVER), ("operator", pki.CLIENT)):
        subject = pki.Subject(f"devicemount-{name}", (usage,), dns_names=(f"devicemount-{name}",))
        pair = pki.issue(authority, subject=subject, name=name)
        mounted = directory / name
        mounted.mkdir()
        (mounted / "tls.crt").write_bytes(pair.certificate.read_bytes())
        (mounted / "tls.key").write_bytes(pair.key.read_bytes())
        (mounted / "ca.crt").write_bytes(authority.certificate.read_bytes())
    return directory
