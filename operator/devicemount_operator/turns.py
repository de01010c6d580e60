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
from typing import Final, TypeAlias

from devicemount_operator import pods, shadow_pod
from devicemount_operator.caches import Shadows
from devicemount_operator.decide.observation import NodeName, PodUID, Turn
from devicemount_operator.memory import Memories

DOUBT_S: Final = 30.0  # a POST without an answer may still be carried out, or its pod be on the way
MAX_SERVED: Final = 1024  # namespaces whose last turn is remembered

Slot: TypeAlias = tuple[NodeName, str]  # a node and a resource of it
Rank: TypeAlias = tuple[bool, float, str]  # was not placed lately, unix time of creation, UID


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a mount wants to reserve."""

    mount_uid: str
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
        self._line: dict[str, _Waiting] = {}
        self._claims: dict[str, _Claim] = {}
        self._served: dict[str, float] = {}  # namespace -> monotonic: its last turn; newest last

    def ask(self, wish: Wish, *, now: float) -> Turn:
        """Take the turn if it is this mount's, else a place in the line. Never waits in between."""
        waiting = self._line.get(wish.mount_uid) or _Waiting(wish, since=now, asked=True)
        ahead = self._ahead_of(wish, now=now)
        if ahead:
            self._line[wish.mount_uid] = _Waiting(wish, since=waiting.since, asked=True)
        else:
            self._line.pop(wish.mount_uid, None)
            self._claims[wish.mount_uid] = _Claim(wish, self._pods_of(wish.mount_uid))
            self._serve(wish.namespace, now=now)
        return Turn(ahead=ahead, since=waiting.since, is_awaited=self._is_awaited(wish))

    def standing(self, wish: Wish, *, since: float) -> Turn:
        """Return the turn of a mount whose shadow pod is on its way already."""
        return Turn(ahead="", since=since, is_awaited=self._is_awaited(wish))

    def doubt(self, mount_uid: str) -> None:
        """Keep the claim of this pass for a while: nobody knows what came of its POST."""
        if (claim := self._claims.get(mount_uid)) is not None:
            claim.doubted_until = time.monotonic() + DOUBT_S

    def settle(self, mount_uid: str) -> None:
        """End a pass: its shadow pod speaks for itself now, and who comes next is woken."""
        waiting = self._line.get(mount_uid)
        if waiting is not None and not waiting.asked:
            del self._line[mount_uid]
        elif waiting is not None:
            waiting.asked = False
        claim = self._claims.get(mount_uid)
        if claim is not None and claim.doubted_until is None:
            del self._claims[mount_uid]
        if self._line:
            self._wake_the_next(now=time.monotonic())

    def _wake_the_next(self, *, now: float) -> None:
        taken = set(self._taken(now=now))
        for waiting in sorted(self._line.values(), key=lambda waiting: self._order(waiting.wish)):
            if taken.isdisjoint(waiting.wish.slots):
                self._wake(waiting.wish.mount_uid)
            taken |= waiting.wish.slots

    def _ahead_of(self, wish: Wish, *, now: float) -> str:
        """Say what is on its way, or who is first in line; "" when neither."""
        taken = self._taken(now=now, but=wish.mount_uid)
        if found := [taken[slot] for slot in sorted(wish.slots & taken.keys())]:
            return found[0]
        first = any(
            self._order(waiting.wish) < self._order(wish)
            for uid, waiting in self._line.items()
            if uid != wish.mount_uid and waiting.wish.slots & wish.slots
        )
        return "another DeviceMount, which waits as well," if first else ""

    def _order(self, wish: Wish) -> tuple[bool, float, float, str]:
        was_not_placed, created, uid = wish.rank
        return was_not_placed, self._served.get(wish.namespace, 0.0), created, uid

    def _serve(self, namespace: str, *, now: float) -> None:
        self._served.pop(namespace, None)
        self._served[namespace] = now
        if len(self._served) > MAX_SERVED:
            del self._served[next(iter(self._served))]

    def _is_awaited(self, wish: Wish) -> bool:
        return any(
            waiting.wish.slots & wish.slots
            for uid, waiting in self._line.items()
            if uid != wish.mount_uid
        )

    def _taken(self, *, now: float, but: str = "") -> Mapping[Slot, str]:
        """Return what nobody else may reserve now, and for what: claims (but one) and pods."""
        self._end_doubts(now=now)
        claims = {
            slot: "a shadow pod that is being made"
            for uid, claim in self._claims.items()
            if uid != but
            for slot in claim.wish.slots
        }
        return claims | dict(self._on_their_way())

    def _end_doubts(self, *, now: float) -> None:
        for uid, claim in tuple(self._claims.items()):
            until = claim.doubted_until
            if until is not None and (until < now or self._pods_of(uid) - claim.known):
                del self._claims[uid]

    def _pods_of(self, mount_uid: str) -> frozenset[PodUID]:
        return frozenset(shadow.uid for shadow in self._shadows.of(mount_uid))

    def _on_their_way(self) -> Iterator[tuple[Slot, str]]:
        for mount_uid in self._shadows.mounts():
            for shadow in self._shadows.of(mount_uid):
                chosen = self._memories.is_chosen(mount_uid, shadow.uid)
                if chosen or not pods.is_undecided(shadow.raw):
                    continue
                for resource in shadow_pod.resources_of(shadow.raw):
                    yield (shadow.place.node, resource), f"shadow pod {shadow.key.name}"
