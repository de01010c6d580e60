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


def loop(number: int) -> agent_pb2.Device:
    node = agent_pb2.Node(path=f"/dev/loop{number}", type="b", major=7, minor=number, access="rw")
    resource = "testbed.devicemount.io/loop"
    return agent_pb2.Device(resource=resource, id=f"loop{number}", nodes=[node])


LOOP0 = loop(0)
CONTAINER_ID = "c" * 64
GRANTED_NS = 1_800_000_000_000_000_000
_ORDER = [  # the least is what is said of all together
    agent_pb2.WAITING,
    agent_pb2.LOST_PHASE,
    agent_pb2.TARGET_ENDED,
    agent_pb2.BUSY,
    agent_pb2.GRANTED,
]


@dataclass
class StubAgent(agent_pb2_grpc.AgentServicer):
    """Grants at once unless `gate` is cleared.

    `holders` make it busy, or only the shadow pods in `held`; `refusal` makes Apply fail.
    """

    port: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    remove_gate: asyncio.Event = field(default_factory=asyncio.Event)
    removing: int = 0
    most_removing: int = 0
    holders: list[agent_pb2.Holder] = field(default_factory=list)
    held: frozenset[str] | None = None  # UIDs; None: all
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
        state = self._state(request.key)
        for n, pod in enumerate(request.shadow_pods):
            if pod.uid not in {shadow.uid for shadow in state.shadow_pods}:
                state.shadow_pods.add(uid=pod.uid, name=pod.name, devices=[loop(n)])
        for shadow in state.shadow_pods:
            shadow.container = request.target.container
            shadow.granted_unix_ns = shadow.granted_unix_ns or GRANTED_NS
            shadow.phase = agent_pb2.GRANTED
        state.incomplete = False
        return self._say(state)

    async def Remove(
        self, request: agent_pb2.RemoveRequest, context: Context
    ) -> agent_pb2.MountState:
        self.removes.append(request)
        self.removing += 1
        self.most_removing = max(self.removing, self.most_removing)
        try:
            await self.remove_gate.wait()
        finally:
            self.removing -= 1
        for removed in self.waiting:
            removed.set()
        state = self._state(request.key)
        asked = set(request.shadow_uids) or {shadow.uid for shadow in state.shadow_pods}
        held = asked if self.held is None else asked & self.held
        if self.holders and held and request.policy != agent_pb2.LOST:
            for shadow in state.shadow_pods:
                if shadow.uid in held:
                    self._make_busy(shadow, policy=request.policy)
            return self._say(state)
        rest = [shadow for shadow in state.shadow_pods if shadow.uid not in asked]
        del state.shadow_pods[:]
        state.shadow_pods.extend(rest)
        self._say(state)
        answer = agent_pb2.MountState()
        answer.CopyFrom(state)
        for uid in asked:
            answer.shadow_pods.add(uid=uid, phase=agent_pb2.REMOVED)
        return answer

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

    def _state(self, key: agent_pb2.MountKey) -> agent_pb2.MountState:
        """Return a copy of what is so of a mount."""
        state = agent_pb2.MountState(key=key)
        if (known := self.states.get(_of(key))) is not None:
            state.CopyFrom(known)
        return state

    def _make_busy(
        self, shadow: agent_pb2.ShadowState, *, policy: "agent_pb2.Policy.ValueType"
    ) -> None:
        shadow.phase = agent_pb2.BUSY
        del shadow.holders[:]
        shadow.holders.extend(self.holders)
        shadow.holders_total = len(self.holders)
        if policy == agent_pb2.TERMINATE:
            shadow.granted_unix_ns = 0

    def _say(self, state: agent_pb2.MountState) -> agent_pb2.MountState:
        """Say this of a mount from now on: what is of all its shadow pods, and nothing of none."""
        phases = [shadow.phase for shadow in state.shadow_pods]
        state.container_id = CONTAINER_ID
        state.phase = min(phases, key=_ORDER.index, default=agent_pb2.REMOVED)
        state.granted_unix_ns = max((s.granted_unix_ns for s in state.shadow_pods), default=0)
        state.timings_us.update({"chosen": 100, "verified": 200})
        self.states[_of(state.key)] = state
        if not phases:
            del self.states[_of(state.key)]
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
    agent.remove_gate.set()
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
