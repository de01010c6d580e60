# SPDX-License-Identifier: Apache-2.0
"""The watch for losses outlives a checkpoint that cannot be read: an agent that ended over it could
not even remove.
"""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from devicemount_agent.allocation.kubelet import Entry
from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.ledger import Ledger
from devicemount_agent.watchers import loss


class Unreadable:
    """A checkpoint of an unknown shape, then a good one."""

    def __init__(self) -> None:
        self.tries = 0
        self.was_read = asyncio.Event()

    async def versions(self) -> AsyncIterator[tuple[Entry, ...]]:
        self.tries += 1
        if self.tries == 1:
            raise NodeUnavailable("of no known shape")
        self.was_read.set()
        yield ()
        await asyncio.Event().wait()


def test_it_goes_on_after_a_checkpoint_that_cannot_be_read() -> None:
    async def scene() -> None:
        checkpoint, losses = Unreadable(), SimpleNamespace(waiting=tuple)
        watch = asyncio.create_task(
            loss.watch(cast(Any, checkpoint), cast(Any, None), cast(Any, losses), ledger=Ledger)
        )
        async with asyncio.timeout(5):
            await checkpoint.was_read.wait()
        assert not watch.done()
        watch.cancel()

    asyncio.run(scene())
