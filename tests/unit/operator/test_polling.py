# SPDX-License-Identifier: Apache-2.0
"""An agent that is asked in vain for too long makes its mounts doubtful, once."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest

from devicemount_operator import polling
from devicemount_operator.agents import AgentError, Agents, Deadlines, NodeAbout
from devicemount_operator.decide.observation import Grant, GrantPhase, NodeName, Place, PodUID
from devicemount_operator.election import Epoch
from devicemount_operator.memory import Memories
from devicemount_operator.messages import MountGrants
from devicemount_operator.polling import SILENT_S, Pace, Poller
from devicemount_operator.reasons import Reason

NODE = NodeName("node1")
PLACE = Place(node=NODE, target_uid=PodUID("target"))
CHECK_S = 10.0
GRANT = Grant(
    shadow_uid=PodUID("shadow"),
    shadow_name="dm",
    place=PLACE,
    phase=GrantPhase.GRANTED,
    devices=(),
    holders=(),
    holders_total=0,
    container_id=None,
    granted_wall=None,
    timings_ms={},
)


class Clock:
    """Stands in for the module `time`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class OneAgent(Agents):
    """Of NODE, while it has an address; answers List, or does not."""

    def __init__(self) -> None:
        deadlines = Deadlines(apply_s=1.0, remove_s=1.0, list_s=1.0)
        epoch = Epoch(lease_created_ns=0, lease_uid="", transitions=0)
        super().__init__(epoch=epoch, port=1, deadlines=deadlines)
        self.has_address = True
        self.answers = True
        self.asked = asyncio.Queue[None]()
        self.rings = asyncio.Queue[MountGrants | None]()  # None: the mark, all were told

    def nodes(self) -> frozenset[NodeName]:
        return frozenset({NODE}) if self.has_address else frozenset()

    async def about(self, node: NodeName) -> NodeAbout:
        return NodeAbout(cgroup_mode="", kernel="", runtime="", boot_id="", version="")

    async def watch(self, node: NodeName) -> AsyncGenerator[MountGrants | None, None]:
        while True:
            yield await self.rings.get()

    async def list(self, node: NodeName) -> tuple[MountGrants, ...]:
        self.asked.put_nowait(None)
        if not self.answers:
            raise AgentError(Reason.AGENT_UNAVAILABLE, "silent")
        granted = GrantPhase.GRANTED
        return (MountGrants(mount_uid="mount", place=PLACE, phase=granted, grants=(GRANT,)),)


@dataclass
class Scene:
    clock: Clock
    agent: OneAgent = field(default_factory=OneAgent)
    memories: Memories = field(default_factory=Memories)
    woken: list[str] = field(default_factory=list)

    def poller(self, *, poll_s: float = 1.0) -> Poller:
        self.memories.of("mount").answered([GRANT], now=self.clock.now)
        return Poller(
            agents=self.agent,
            memories=self.memories,
            pace=Pace(poll_s=poll_s, check_s=CHECK_S),
            wake=self.woken.append,
        )

    def looked(self, poller: Poller, *, after_s: float) -> list[str]:
        self.clock.now += after_s
        poller.doubt_the_silent(frozenset({NODE}), now=self.clock.now)
        return self.woken


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    clock = Clock()
    monkeypatch.setattr(polling, "time", clock)
    return Scene(clock)


async def test_silence_is_waited_out_and_then_told_once(scene: Scene) -> None:
    poller = scene.poller()
    scene.agent.answers = False
    await poller.ask(NODE)
    assert scene.looked(poller, after_s=SILENT_S) == []
    await poller.ask(NODE)
    assert scene.looked(poller, after_s=1) == ["mount"]
    assert scene.looked(poller, after_s=1) == ["mount"]


async def test_an_agent_that_was_not_asked_for_long_is_not_silent(scene: Scene) -> None:
    poller = scene.poller()
    await poller.ask(NODE)
    assert scene.looked(poller, after_s=CHECK_S + 1) == []  # its stream spoke for it
    scene.agent.answers = False  # it is restarted, and its stream is cut
    await poller.ask(NODE)
    assert scene.looked(poller, after_s=1) == []
    scene.agent.answers = True
    await poller.ask(NODE)
    assert scene.looked(poller, after_s=SILENT_S + 1) == []


async def test_a_node_without_an_agent_is_silent_from_then_on(scene: Scene) -> None:
    poller = scene.poller()
    await poller.ask(NODE)
    scene.agent.has_address = False
    assert scene.looked(poller, after_s=SILENT_S + 1) == []
    assert scene.looked(poller, after_s=SILENT_S + 1) == ["mount"]


async def test_what_rang_is_asked_for_again_soon_where_the_question_failed(scene: Scene) -> None:
    async with asyncio.timeout(CHECK_S / 2), asyncio.TaskGroup() as parts:
        polling = parts.create_task(scene.poller(poll_s=0.01).run())
        scene.agent.rings.put_nowait(None)
        await scene.agent.asked.get()
        scene.agent.answers = False
        busy = MountGrants(mount_uid="mount", place=PLACE, phase=GrantPhase.BUSY, grants=())
        scene.agent.rings.put_nowait(busy)
        for _ in range(3):  # one may be of the stream's beginning
            await scene.agent.asked.get()
        polling.cancel()
