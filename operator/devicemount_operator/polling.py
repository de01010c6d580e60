# SPDX-License-Identifier: Apache-2.0
"""Asks the nodes that have mounts what is so there: when an agent rings, and now and then.

Agents know first when a container or a holder ends or a reservation is lost. One `List` a node,
however many mounts and however often it rang; while no stream tells of changes, one every second.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from devicemount_agent_api.version import VERSION
from devicemount_operator.agents import AgentError, Agents, NodeAbout
from devicemount_operator.decide.observation import Grant, NodeName
from devicemount_operator.decide.text import clip
from devicemount_operator.memory import Memories
from devicemount_operator.watching import Stream

SILENT_S: Final = 10.0  # asked in vain: one that is restarted is back by then, its word stands
FACT_CHARACTERS: Final = 128  # of what a node says of itself, in a line of the log
GATHER_S: Final = 0.03  # what changes together is asked for once, and after our own answers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often a node is asked unasked for."""

    poll_s: float  # while nothing tells of changes
    check_s: float  # while a stream does


class Poller:
    """Keeps what agents say fresh in the memories, and wakes the mounts of which one says news."""

    def __init__(
        self, *, agents: Agents, memories: Memories, pace: Pace, wake: Callable[[str], None]
    ) -> None:
        self._agents = agents
        self._memories = memories
        self._pace = pace
        self._wake = wake
        self._streams: dict[NodeName, Stream] = {}
        self._attending: dict[NodeName, asyncio.Task[None]] = {}
        self._silent: set[NodeName] = set()  # that did not answer when they were asked last
        self._in_vain: dict[NodeName, float] = {}  # monotonic: asked since then, and no answer
        self._about: dict[NodeName, NodeAbout] = {}

    async def run(self) -> None:
        """Attend to nodes for ever, each at its own pace: none delays another."""
        async with asyncio.TaskGroup() as attending:
            while True:
                await asyncio.sleep(self._pace.poll_s)
                nodes = self._memories.nodes()
                wanted = nodes & self._agents.nodes()
                for node in self._attending.keys() - wanted:
                    self._attending.pop(node).cancel()
                    del self._streams[node]
                for node in wanted - self._attending.keys():
                    stream = Stream(node, agents=self._agents, memories=self._memories)
                    self._streams[node] = stream
                    self._attending[node] = attending.create_task(self._attend(node, stream))
                self.doubt_the_silent(nodes, now=time.monotonic())

    async def _attend(self, node: NodeName, stream: Stream) -> None:
        async with asyncio.TaskGroup() as parts:
            parts.create_task(stream.follow(self._take_note))
            parts.create_task(self._ask_on(node, stream))

    async def _ask_on(self, node: NodeName, stream: Stream) -> None:
        """Ask when it rings, and when it has not for too long; never twice at once."""
        while True:
            stream.rung.clear()
            await self.ask(node)
            await self._due(node, stream, asked=asyncio.get_running_loop().time())

    async def _due(self, node: NodeName, stream: Stream, *, asked: float) -> None:
        """Return when there is news, or when it is time to ask anyway."""
        while True:
            is_told = stream.is_alive and node not in self._silent
            pause_s = self._pace.check_s if is_told else self._pace.poll_s
            try:
                async with asyncio.timeout_at(asked + pause_s):
                    await stream.rung.wait()
            except TimeoutError:
                return
            await asyncio.sleep(GATHER_S)
            stream.rung.clear()
            if stream.is_news():
                return

    def doubt_the_silent(self, nodes: frozenset[NodeName], *, now: float) -> None:
        """Wake the mounts of agents that give no answer for too long: they may not be Ready.

        That a stream lives proves nothing, and that a node was not asked does not either.
        """
        for node in nodes - self._agents.nodes():  # nobody is there to be asked
            self._in_vain.setdefault(node, now)
        self._in_vain = {node: at for node, at in self._in_vain.items() if node in nodes}
        for node, since in self._in_vain.items():
            if now - since > SILENT_S:
                for uid in self._memories.doubt(node):
                    self._wake(uid)

    async def ask(self, node: NodeName) -> None:
        """Take in what one node says; one that does not answer says nothing."""
        asked = time.monotonic()
        self._in_vain.setdefault(node, asked)
        try:
            mounts = await self._agents.list(node)
        except AgentError as error:
            if node not in self._silent:
                log.warning("an agent does not answer node=%s error=%s", node, error)
            self._silent.add(node)
            return
        self._silent.discard(node)
        self._in_vain.pop(node, None)
        said: dict[str, list[Grant]] = defaultdict(list)
        for mount in mounts:
            said[mount.mount_uid] += mount.grants
        is_overtaken = False
        for uid in self._memories.on(node) | said.keys():
            if self._memories.listed(uid, node, said.get(uid, []), asked=asked):
                self._wake(uid)
            is_overtaken |= not self._memories.agrees(uid, node, said.get(uid, []))
        stream = self._streams.get(node)
        if stream is not None and is_overtaken:  # by an answer: which of both is newer is unknown
            stream.doubt()

    def _take_note(self, node: NodeName, about: NodeAbout) -> None:
        """Log what a node is when it is first seen, and when that has changed."""
        before = self._about.get(node)
        if about == before:
            return
        self._about[node] = about
        if before is not None and before.boot_id != about.boot_id:
            log.info("a node was booted again node=%s", node)
        said = (about.cgroup_mode, about.kernel, about.runtime, about.version, about.boot_id)
        log.info(
            "an agent is there node=%s cgroup_mode=%s kernel=%s runtime=%r version=%s boot_id=%s",
            node,
            *(clip(text, FACT_CHARACTERS) for text in said),
        )
        if about.version and about.version != VERSION:
            version = clip(about.version, FACT_CHARACTERS)
            log.warning("versions differ node=%s agent=%s operator=%s", node, version, VERSION)
