# SPDX-License-Identifier: Apache-2.0
"""Reader `resolver`: nodes from the names of devices, where the answer names only those.

Some vendors' plugins answer a variable, and the vendor's runtime makes nodes of it. What names a
device (the variable, the kubelet's ids) is said by the profile; if several do they must mean the
same devices. The same expectation is held against what other sources say: an answer or a CDI spec
that gives other cards than the kubelet counts is not ours to grant.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from devicemount_agent.allocation.said import NAMED, NO_EDITS, Said, Subject, joined
from devicemount_agent.errors import AllocationUnknown
from devicemount_agent.model import DeviceNode, DeviceNumber, Edits
from devicemount_agent.profiles.profile import Named


@dataclass(frozen=True, slots=True)
class Resolved:
    """What names of devices mean on this node."""

    own: tuple[DeviceNode, ...]  # which devices they are
    shared: tuple[DeviceNode, ...]  # control nodes, and what else comes with every device
    edits: Edits = NO_EDITS


class Disagreement(AllocationUnknown):
    """Two sources name different devices: no third one is asked."""


class Resolver(Protocol):
    """One vendor's way."""

    def names(self, subject: Subject, by: Named) -> tuple[str, ...]:
        """Return what names the devices, nothing if that names none. Raises AllocationUnknown."""
        ...

    def resolve(self, subject: Subject, names: Iterable[str]) -> Resolved:
        """Return what they mean. Raises AllocationUnknown, NotAllowed."""
        ...

    def always(self) -> Edits:
        """Return what comes with every device of the vendor, whatever source told its nodes."""
        ...

    def count(self, nodes: Iterable[DeviceNode]) -> int:
        """Return how many devices these nodes are at least: control nodes are none."""
        ...


class Resolving:
    """All resolvers behind the one interface."""

    def __init__(self, resolvers: Mapping[str, Resolver]) -> None:
        self._resolvers = resolvers

    async def read(self, subject: Subject) -> Said | None:
        if subject.profile.node_map is None:
            return None
        resolved = await asyncio.to_thread(self._resolved, subject)
        if resolved is None:
            return None
        nodes = (*resolved.own, *resolved.shared)
        return joined(subject.resource, Said(nodes, resolved.edits))

    async def expected(self, subject: Subject) -> tuple[DeviceNode, ...]:
        """Return the nodes that another source must have named; nothing where that is not known."""
        if subject.profile.node_map is None:
            return ()
        resolved = await asyncio.to_thread(self._expected, subject)
        return resolved.own if resolved else ()

    async def always(self, subject: Subject) -> Edits:
        """Return what comes with every device, whatever source told its nodes."""
        resolver = self._resolver(subject)
        return await asyncio.to_thread(resolver.always) if resolver else NO_EDITS

    def count(self, subject: Subject, nodes: Iterable[DeviceNode]) -> int:
        """Return how many devices these nodes are at least, as far as that is known."""
        resolver = self._resolver(subject)
        return resolver.count(nodes) if resolver else 0

    def unnamed(self, subject: Subject, nodes: Iterable[DeviceNode]) -> tuple[DeviceNode, ...]:
        """Return those that come only with the name of a device, so not by being shown.

        Without a resolver nobody can tell them from control nodes: all.
        """
        resolver = self._resolver(subject)
        return tuple(node for node in nodes if resolver is None or resolver.count((node,)))

    def _resolver(self, subject: Subject) -> Resolver | None:
        node_map = subject.profile.node_map
        return self._resolvers[node_map.resolver] if node_map else None

    def _resolved(self, subject: Subject) -> Resolved | None:
        return _agreed(subject, [self._meant(subject, by) for by in self._order(subject)])

    def _expected(self, subject: Subject) -> Resolved | None:
        meant: list[_Meant | None] = []
        for by in self._order(subject):
            with suppress(AllocationUnknown):  # these names mean nothing here: nor a contradiction
                meant.append(self._meant(subject, by))
        return _agreed(subject, meant)

    @staticmethod
    def _order(subject: Subject) -> Iterable[Named]:
        return subject.profile.node_map.order if subject.profile.node_map else ()

    def _meant(self, subject: Subject, by: Named) -> "_Meant | None":
        """Return what one kind of names means; None where it names nothing."""
        resolver = self._resolver(subject)
        if resolver is None:
            return None
        names = resolver.names(subject, by)
        return _Meant(by, names, resolver.resolve(subject, names)) if names else None


@dataclass(frozen=True, slots=True)
class _Meant:
    """What one kind of names means."""

    by: Named
    names: tuple[str, ...]
    resolved: Resolved

    def numbers(self) -> frozenset[DeviceNumber]:
        return frozenset(node.number for node in self.resolved.own)


def _agreed(subject: Subject, meant: Iterable[_Meant | None]) -> Resolved | None:
    """Return what all of them mean. Raises Disagreement."""
    known = [one for one in meant if one is not None]
    if not known:
        return None
    first = known[0]
    for other in known[1:]:
        if other.numbers() != first.numbers():
            raise Disagreement(
                f"{subject.resource}: {first.by} ({_listed(first.names)}) and {other.by}"
                f" ({_listed(other.names)}) name different devices:"
                f" {paths(first.resolved.own)} and {paths(other.resolved.own)}: another scheduler"
                " (Volcano, HAMi) decides, or the answer is out of date"
            )
    return first.resolved


def paths(nodes: Iterable[DeviceNode]) -> str:
    """Return the nodes' paths for a message."""
    return _listed(sorted(node.path for node in nodes)) or "nothing"


def _listed(names: Iterable[str]) -> str:
    names = [*names]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
