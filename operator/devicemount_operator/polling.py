# SPDX-License-Identifier: Apache-2.0
"""Asks every node that has mounts what is so there, once a second: one `List` a node, however many
mounts.

Agents know first when a container or a holder ends or a reservation is lost, and cannot call.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable

from devicemount_operator.agents import AgentError, Agents
from devicemount_operator.decide.observation import Grant, NodeName
from devicemount_operator.memory import Memories

SILENT_S = 10.0  # an agent that is restarted is back by then: until then what it said stands

log = logging.getLogger(__name__)


class Poller:
    """Keeps what agents say fresh in the memories, and wakes the mounts of which one says news."""

    def __init__(
        self, *, agents: Agents, memories: Memories, interval_s: float, wake: Callable[[str], None]
    ) -> None:
        self._agents = agents
        self._memories = memories
        self._interval_s = interval_s
        self._wake = wake
        self._silent: set[NodeName] = set()  # told in the log already
        self._asked: set[NodeName] = set()  # and not answered yet
        self._heard: dict[NodeName, float] = {}  # monotonic

    async def run(self) -> None:
        """Ask for ever.

        A node that is slow to answer is not asked again meanwhile, and delays no other.
        """
        async with asyncio.TaskGroup() as asking:
            while True:
                await asyncio.sleep(self._interval_s)
                nodes = self._memories.nodes()
                for node in nodes & self._agents.nodes() - self._asked:
                    asking.create_task(self.ask(node))
                self.doubt_the_silent(nodes, now=time.monotonic())

    def doubt_the_silent(self, nodes: frozenset[NodeName], *, now: float) -> None:
        """Wake the mounts of agents that have said nothing for too long: they may not be Ready."""
        self._heard = {node: self._heard.get(node, now) for node in nodes}
        for node, heard in self._heard.items():
            if now - heard > SILENT_S:
                for uid in self._memories.doubt(node):
                    self._wake(uid)

    async def ask(self, node: NodeName) -> None:
        """Take in what one node says; one that does not answer says nothing."""
        asked = time.monotonic()
        self._asked.add(node)
        try:
            mounts = await self._agents.list(node)
        except AgentError as error:
            if node not in self._silent:
                log.warning("an agent does not answer node=%s error=%s", node, error)
            self._silent.add(node)
            return
        finally:
            self._asked.discard(node)
        self._silent.discard(node)
        self._heard[node] = time.monotonic()
        said: dict[str, list[Grant]] = defaultdict(list)
        for mount in mounts:
            said[mount.mount_uid] += mount.grants
        for uid in self._memories.on(node) | said.keys():
            if self._memories.listed(uid, node, said.get(uid, []), asked=asked):
                self._wake(uid)
