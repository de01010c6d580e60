# SPDX-License-Identifier: Apache-2.0
"""An `Apply` under way, in a task of its own: it outlives its caller once it has begun to grant."""

import asyncio
from collections.abc import Callable, Coroutine

from devicemount_agent.model import ContainerID
from devicemount_agent.requests import ApplyRequest
from devicemount_agent.state import MountState
from devicemount_agent.timeline import Timeline

Attach = Callable[["Attempt"], Coroutine[None, None, MountState]]


class Attempt:
    """What is asked, how far it has come, and until when it may wait."""

    def __init__(self, request: ApplyRequest, *, deadline: float, attach: Attach) -> None:
        """Start it. The deadline is in loop time."""
        self.request = request
        self.deadline = deadline
        self.timeline = Timeline()
        self._is_waiting = True
        self._is_given_up = False
        self.container_id: ContainerID | None = None
        self.task = asyncio.create_task(attach(self))

    def give_up(self) -> None:
        """End it at once if it only waits, else before it waits again."""
        self._is_given_up = True
        if self._is_waiting:
            self.task.cancel()

    def waits(self) -> None:
        """From here on nothing but the intent would have to be undone."""
        self._is_waiting = True
        if self._is_given_up:
            self.task.cancel()

    def acts(self) -> None:
        """From here on it comes to its end, whoever goes away."""
        self._is_waiting = False

    async def ended(self) -> None:
        """Give it up and wait for its end."""
        self.give_up()
        await asyncio.wait([self.task])
