# SPDX-License-Identifier: Apache-2.0
"""What nodes say of resources before anything is reserved, remembered so that a mount does not wait
for it.

What is known is given at once, however old, and asked for again in the background: an agent judges
an Apply by itself, so an outdated yes costs a shadow pod and nothing else. An outdated no would
keep a mount waiting; whoever is about to say no asks for `fresh` facts.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from devicemount_operator.agents import AgentError, Agents
from devicemount_operator.decide.observation import NodeName, ResourceFacts
from devicemount_operator.queue import aside

log = logging.getLogger(__name__)

FRESH_S: Final = 5.0
RENEW_AFTER_S: Final = 1.0
MAX_KNOWN: Final = 4096  # pairs of node and resource: tenants name resources as they like


_Question: TypeAlias = tuple[NodeName, frozenset[str]]


@dataclass(frozen=True, slots=True)
class _Known:
    facts: ResourceFacts
    asked: float  # monotonic


class NodeFacts:
    """By node and resource."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._known: dict[tuple[NodeName, str], _Known] = {}
        self._flights: dict[_Question, asyncio.Task[None]] = {}
        self._renewals: dict[_Question, asyncio.TimerHandle] = {}

    async def of(self, node: NodeName, resources: Iterable[str]) -> tuple[ResourceFacts, ...]:
        """Return what is known, at once unless nothing is. Raises AgentError."""
        wanted = frozenset(resources)
        age_s = self._age_s(node, wanted)
        if age_s is None:
            await self._landing(node, wanted)
        elif age_s > FRESH_S:
            self._renew(node, wanted)
        return self._facts(node, wanted)

    async def fresh(self, node: NodeName, resources: Iterable[str]) -> tuple[ResourceFacts, ...]:
        """Return what was true some seconds ago at most. Raises AgentError."""
        wanted = frozenset(resources)
        age_s = self._age_s(node, wanted)
        if age_s is None or age_s > FRESH_S:
            await self._landing(node, wanted)
        return self._facts(node, wanted)

    async def _landing(self, node: NodeName, wanted: frozenset[str]) -> None:
        async with aside():
            await asyncio.shield(self._flight(node, wanted))

    async def close(self) -> None:
        """Give up what is being asked, or is to be."""
        for renewal in self._renewals.values():
            renewal.cancel()
        flights = tuple(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _age_s(self, node: NodeName, wanted: frozenset[str]) -> float | None:
        """Return the age of the oldest, or None where one is not known."""
        known = [self._known.get((node, resource)) for resource in wanted]
        asked = [fact.asked for fact in known if fact is not None]
        return time.monotonic() - min(asked) if len(asked) == len(known) else None

    def _facts(self, node: NodeName, wanted: frozenset[str]) -> tuple[ResourceFacts, ...]:
        known = (self._known.get((node, resource)) for resource in sorted(wanted))
        return tuple(fact.facts for fact in known if fact is not None)

    def _renew(self, node: NodeName, wanted: frozenset[str]) -> None:
        """Ask a little later: now the agent is about to be asked for a grant."""
        if (node, wanted) not in self._renewals:
            loop = asyncio.get_running_loop()
            self._renewals[node, wanted] = loop.call_later(
                RENEW_AFTER_S, self._flight, node, wanted
            )

    def _flight(self, node: NodeName, wanted: frozenset[str]) -> "asyncio.Task[None]":
        """Return the question that is being asked, one at a time."""
        if (renewal := self._renewals.pop((node, wanted), None)) is not None:
            renewal.cancel()
        if (flight := self._flights.get((node, wanted))) is not None:
            return flight
        flight = asyncio.ensure_future(self._ask(node, wanted))
        self._flights[node, wanted] = flight
        flight.add_done_callback(lambda done: self._landed(node, wanted, done))
        return flight

    def _landed(self, node: NodeName, wanted: frozenset[str], flight: "asyncio.Task[None]") -> None:
        del self._flights[node, wanted]
        if flight.cancelled() or (error := flight.exception()) is None:
            return
        if not isinstance(error, AgentError):  # a bug; who waits for it raises it as well
            log.error("cannot take in what a node says node=%s", node, exc_info=error)
            return
        log.info("a node does not say what it knows of resources node=%s: %s", node, error)

    async def _ask(self, node: NodeName, wanted: frozenset[str]) -> None:
        asked = time.monotonic()
        said = {fact.resource: fact for fact in await self._agents.facts(node, sorted(wanted))}
        for resource in wanted:
            self._known.pop((node, resource), None)  # the newest stand last
            facts = said.get(resource) or _nothing_said_of(resource)
            self._known[node, resource] = _Known(facts, asked)
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]


def _nothing_said_of(resource: str) -> ResourceFacts:
    return ResourceFacts(
        resource=resource, serialised=False, env_only="", refused="", driver_missing=""
    )
