# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is where a vendor's plugin guesses whose call it is: one shadow pod on its way at a
time, by node and resource.

A shadow pod is on its way from its POST until the kubelet has chosen, which the pod itself says or
its agent; so a restarted operator sees what is on its way. Between a decision and the answer of its
POST no pod says so: a claim does, taken in the same step in which the way was seen to be free. Who
must wait stands in line: who could not be placed lately behind the others, else the namespace first
whose last turn is longest ago, so that nobody queues up in front of other tenants, and in it the
oldest DeviceMount.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from devicemount_operator import pods, shadow_pod
from devicemount_operator.caches import Shadows
from devicemount_operator.decide.observation import NodeName, PodUID, Turn
from devicemount_operator.decide.split import NAMED, PartKey
from devicemount_operator.memory import Memories

DOUBT_S: Final = 30.0  # a POST without an answer may still be carried out, or its pod be on the way
MAX_SERVED: Final = 1024  # namespaces whose last turn is remembered

Slot: TypeAlias = tuple[NodeName, str]  # a node and a resource of it
Rank: TypeAlias = tuple[bool, float, str]  # was not placed lately, unix time of creation, UID


class Wisher(NamedTuple):
    """A target pod of a mount."""

    mount_uid: str
    part: PartKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a mount wants to reserve for a target pod."""

    who: Wisher
    namespace: str
    rank: Rank
    slots: frozenset[Slot]


@dataclass(slots=True)
class _Waiting:
    wish: Wish
    since: float  # monotonic
    asked: bool  # in the pass that runs


@dataclass(slots=True)
class _Claim:
    wish: Wish
    known: frozenset[PodUID]  # its shadow pods before the POST: another one speaks for itself
    doubted_until: float | None = None  # monotonic: it outlives its pass


class Turns:
    """The line, and who has left it for the way."""

    def __init__(
        self, *, shadows: Shadows, memories: Memories, wake: Callable[[str], None]
    ) -> None:
        self._shadows = shadows
        self._memories = memories
        self._wake = wake
        self._line: dict[Wisher, _Waiting] = {}
        self._claims: dict[Wisher, _Claim] = {}
        self._served: dict[str, float] = {}  # namespace -> monotonic: its last turn; newest last

    def ask(self, wish: Wish, *, now: float) -> Turn:
        """Take the turn if it is this wish's, else a place in the line. Never waits in between."""
        waiting = self._line.get(wish.who) or _Waiting(wish, since=now, asked=True)
        ahead = self._ahead_of(wish, now=now)
        if ahead:
            self._line[wish.who] = _Waiting(wish, since=waiting.since, asked=True)
        else:
            self._line.pop(wish.who, None)
            self._claims[wish.who] = _Claim(wish, self._pods_of(wish.who))
            self._serve(wish.namespace, now=now)
        return Turn(ahead=ahead, since=waiting.since, is_awaited=self._is_awaited(wish))

    def standing(self, wish: Wish, *, since: float) -> Turn:
        """Return the turn of a mount whose shadow pod is on its way already."""
        return Turn(ahead="", since=since, is_awaited=self._is_awaited(wish))

    def doubt(self, who: Wisher) -> None:
        """Keep the claim of this pass for a while: nobody knows what came of its POST."""
        if (claim := self._claims.get(who)) is not None:
            claim.doubted_until = time.monotonic() + DOUBT_S

    def settle(self, mount_uid: str) -> None:
        """End a pass: its shadow pods speak for themselves now, and who comes next is woken."""
        for who in [who for who in self._line if who.mount_uid == mount_uid]:
            if self._line[who].asked:
                self._line[who].asked = False
            else:
                del self._line[who]
        for who in [who for who in self._claims if who.mount_uid == mount_uid]:
            if self._claims[who].doubted_until is None:
                del self._claims[who]
        if self._line:
            self._wake_the_next(now=time.monotonic())

    def _wake_the_next(self, *, now: float) -> None:
        taken = set(self._taken(now=now))
        for waiting in sorted(self._line.values(), key=lambda waiting: self._order(waiting.wish)):
            if taken.isdisjoint(waiting.wish.slots):
                self._wake(waiting.wish.who.mount_uid)
            taken |= waiting.wish.slots

    def _ahead_of(self, wish: Wish, *, now: float) -> str:
        """Say what is on its way, or who is first in line; "" when neither."""
        taken = self._taken(now=now, but=wish.who)
        if found := [taken[slot] for slot in sorted(wish.slots & taken.keys())]:
            return found[0]
        first = any(
            self._order(waiting.wish) < self._order(wish)
            for who, waiting in self._line.items()
            if who != wish.who and waiting.wish.slots & wish.slots
        )
        return "another DeviceMount, which waits as well," if first else ""

    def _order(self, wish: Wish) -> tuple[bool, float, float, str, str]:
        was_not_placed, created, uid = wish.rank
        served = self._served.get(wish.namespace, 0.0)
        return was_not_placed, served, created, uid, wish.who.part

    def _serve(self, namespace: str, *, now: float) -> None:
        self._served.pop(namespace, None)
        self._served[namespace] = now
        if len(self._served) > MAX_SERVED:
            del self._served[next(iter(self._served))]

    def _is_awaited(self, wish: Wish) -> bool:
        return any(
            waiting.wish.slots & wish.slots
            for who, waiting in self._line.items()
            if who != wish.who
        )

    def _taken(self, *, now: float, but: Wisher | None = None) -> Mapping[Slot, str]:
        """Return what nobody else may reserve now, and for what: claims (but one) and pods."""
        self._end_doubts(now=now)
        claims = {
            slot: "a shadow pod that is being made"
            for who, claim in self._claims.items()
            if who != but
            for slot in claim.wish.slots
        }
        return claims | dict(self._on_their_way())

    def _end_doubts(self, *, now: float) -> None:
        for who, claim in tuple(self._claims.items()):
            until = claim.doubted_until
            if until is not None and (until < now or self._pods_of(who) - claim.known):
                del self._claims[who]

    def _pods_of(self, who: Wisher) -> frozenset[PodUID]:
        return frozenset(
            shadow.uid
            for shadow in self._shadows.of(who.mount_uid)
            if who.part in (NAMED, shadow.place.target_uid)
        )

    def _on_their_way(self) -> Iterator[tuple[Slot, str]]:
        for mount_uid in self._shadows.mounts():
            for shadow in self._shadows.of(mount_uid):
                chosen = self._memories.is_chosen(mount_uid, shadow.uid)
                if chosen or not pods.is_undecided(shadow.raw):
                    continue
                for resource in shadow_pod.resources_of(shadow.raw):
                    yield (shadow.place.node, resource), f"shadow pod {shadow.key.name}"
