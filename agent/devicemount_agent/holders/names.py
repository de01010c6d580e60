# SPDX-License-Identifier: Apache-2.0
"""What the runtime calls the containers of holders: an owner knows names, not ids."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from devicemount_agent.container.cri import ContainerFacts
from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.holders.search import DESCRIBED_LIMIT, Sighting
from devicemount_agent.logs import line
from devicemount_agent.model import ContainerID

WAIT_S = 1.0  # the pod's lock is held; the runtime answers in milliseconds

log = logging.getLogger(__name__)

Ask = Callable[[ContainerID], Awaitable[ContainerFacts | None]]


async def added(sightings: tuple[Sighting, ...], ask: Ask) -> tuple[Sighting, ...]:
    """Return the sightings with names, where the runtime tells them soon."""
    ids = (one.holder.container_id for one in sightings[:DESCRIBED_LIMIT])
    facts: dict[ContainerID, ContainerFacts] = {}
    try:
        async with asyncio.timeout(WAIT_S):
            for container_id in dict.fromkeys(filter(None, ids)):
                if (known := await ask(container_id)) is not None:
                    facts[container_id] = known
    except (NodeUnavailable, TimeoutError) as error:  # the ids are told in any case
        log.info(line("holders not named", error=repr(error)))
    return tuple(_named(one, facts) for one in sightings)


def _named(one: Sighting, facts: dict[ContainerID, ContainerFacts]) -> Sighting:
    holder = one.holder
    known = facts.get(holder.container_id) if holder.container_id else None
    if known is None:
        return one
    named = replace(
        holder, container=known.name, pod_name=known.pod_name, pod_namespace=known.namespace
    )
    return replace(one, holder=named)
