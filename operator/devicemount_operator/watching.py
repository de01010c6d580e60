# SPDX-License-Identifier: Apache-2.0
"""One node's agent rings when something about a mount has changed, and the operator asks it.

A message is a bell and not the truth: the answer to a request can overtake it, and only a List that
is asked for afterwards is newer than that answer. What repeats what is known rings nothing, so
that an operator does not ask about its own requests.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from devicemount_operator.agents import AgentError, Agents, NodeAbout, WatchUnknown
from devicemount_operator.decide.observation import NodeName, Place
from devicemount_operator.memory import Memories
from devicemount_operator.messages import MountGrants

FIRST_PAUSE_S: Final = 0.2  # before a stream that was cut is opened again, doubled each time
LAST_PAUSE_S: Final = 5.0
TOO_OLD_PAUSE_S: Final = 60.0  # an agent without the stream is asked for one this rarely

log = logging.getLogger(__name__)


class Stream:
    """From one node's agent."""

    def __init__(self, node: NodeName, *, agents: Agents, memories: Memories) -> None:
        self.is_alive = False  # all mounts were told, and since then what has changed
        self.rung = asyncio.Event()
        self._node = node
        self._agents = agents
        self._memories = memories
        self._said: dict[tuple[str, Place], MountGrants] = {}  # since it was last looked at
        self._is_unsure = False  # a stream began or was cut: what is gone by now was not told

    async def follow(self, about: Callable[[NodeName, NodeAbout], None]) -> None:
        """Listen for ever; a stream that ends is opened again."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                about(self._node, await self._agents.about(self._node))
                await self._listen()
            except WatchUnknown as unknown:
                log.info("no stream, so it is polled node=%s: %s", self._node, unknown)
                pause_s = TOO_OLD_PAUSE_S
            except AgentError as error:
                if self.is_alive:
                    log.info("a stream was cut node=%s: %s", self._node, error)
                    pause_s = FIRST_PAUSE_S
            if self.is_alive:
                self.is_alive = False
                self._ring_for_all()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    def doubt(self) -> None:
        """Ask again: what was heard was late, and nobody tells it a second time."""
        self._ring_for_all()

    def is_news(self) -> bool:
        """Tell whether anything differs from what is known by now; forget what was said."""
        said, self._said = self._said, {}
        unsure, self._is_unsure = self._is_unsure, False
        return unsure or any(
            not self._memories.agrees(mount.mount_uid, self._node, mount.grants)
            for mount in said.values()
        )

    async def _listen(self) -> None:
        """Raises AgentError or WatchUnknown, sooner or later."""
        async with aclosing(self._agents.watch(self._node)) as messages:
            async for message in messages:
                if message is None:
                    self.is_alive = True
                    self._ring_for_all()
                elif self.is_alive:  # before that it is the past of what is asked for then
                    self._said[message.mount_uid, message.place] = message
                    self.rung.set()

    def _ring_for_all(self) -> None:
        self._is_unsure = True
        self.rung.set()
