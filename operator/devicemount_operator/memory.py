# SPDX-License-Identifier: Apache-2.0
"""What the operator itself knows of one mount and what no object says: agents' words of its shadow
pods, and for each of its target pods an Apply in flight and setbacks.

All of it can be lost: a restarted operator asks the agents (List), and Apply is idempotent. What an
agent answered to a request is newer than what a List says that was sent before that answer came.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from devicemount_operator.api.v1alpha1 import Target
from devicemount_operator.decide.happened import ToldOf
from devicemount_operator.decide.observation import (
    AgentView,
    Grant,
    GrantPhase,
    Milestones,
    NodeName,
    Place,
    PodUID,
    Refusal,
    Setback,
    Silence,
    is_granted,
)
from devicemount_operator.decide.split import PartKey

OLD_S: Final = 60.0  # no List is answered that late


@dataclass(slots=True)
class PartMemory:
    """Of one target pod of a DeviceMount."""

    seen: float  # monotonic: since when it is one
    setback: Setback | None = None
    applied: float | None = None  # monotonic: the Apply was sent by which it was granted first
    is_measured: bool = False  # it was granted once: how long a later grant takes is not told
    asked_at: float | None = None  # monotonic: the last Apply was sent
    container: str | None = None  # that the last Apply named
    asked_for: Target | None = None  # spec.target when it was sent
    asked: frozenset[PodUID] = frozenset()  # the shadow pods that it named
    applying: frozenset[PodUID] = frozenset()  # the same, while it is in flight
    apply_task: "asyncio.Task[None] | None" = None
    refusal: Refusal | None = None
    told: ToldOf = field(default_factory=dict)

    def milestones(self) -> Milestones:
        return Milestones(seen=self.seen, applied=self.applied)

    def end_apply(self) -> None:
        """Give up an Apply in flight one of whose shadow pods was given back.

        Its answer means nothing now.
        """
        if self.apply_task is not None:
            self.apply_task.cancel()
        self.apply_task = self.refusal = None
        self.applying = frozenset()


@dataclass(slots=True)
class Memory:
    """Of one DeviceMount UID."""

    noted: Callable[[NodeName], None] = lambda _: None  # is told where agents have something
    released: set[PodUID] = field(default_factory=set)
    unanswered: dict[NodeName, Silence] = field(default_factory=dict)
    _parts: dict[PartKey, PartMemory] = field(default_factory=dict)
    _grants: dict[PodUID, Grant] = field(default_factory=dict)
    _answered: dict[PodUID, float] = field(default_factory=dict)  # monotonic, by shadow pod
    _ended: dict[PodUID, float] = field(default_factory=dict)  # the same: its container has ended

    def part(self, key: PartKey, *, now: float) -> PartMemory:
        """Return what is known of one target pod; one that is new is known since now."""
        return self._parts.setdefault(key, PartMemory(seen=now))

    def parts(self) -> Mapping[PartKey, PartMemory]:
        return self._parts

    def forget_parts(self, but: Iterable[PartKey]) -> None:
        """Forget what is no target pod any more and has nothing left."""
        for key in self._parts.keys() - set(but):
            self._parts.pop(key).end_apply()

    def end_applies(self, given_back: frozenset[PodUID]) -> None:
        """Give up each Apply that names one of these shadow pods, and how it was refused."""
        for part in self._parts.values():
            if part.asked & given_back:
                part.end_apply()

    def agent_view(self, part: PartMemory, nodes: frozenset[NodeName]) -> AgentView:
        return AgentView(
            nodes=nodes,
            grants=tuple(self._grants.values()),
            released=frozenset(self.released),
            asked=part.asked,
            asked_at=part.asked_at,
            applying=part.applying,
            container=part.container,
            asked_for=part.asked_for,
            refusal=part.refusal,
            unanswered=dict(self.unanswered),
            ended=dict(self._ended),
        )

    def grants(self) -> tuple[Grant, ...]:
        return tuple(self._grants.values())

    def places(self) -> frozenset[Place]:
        """Return where agents have something of this mount."""
        return frozenset(
            grant.place for grant in self._grants.values() if grant.phase is not GrantPhase.REMOVED
        )

    def nodes(self) -> frozenset[NodeName]:
        """Return the nodes whose agents have something of this mount."""
        return frozenset(place.node for place in self.places())

    def answered(self, grants: Iterable[Grant], *, now: float) -> None:
        """Take in what an agent answered to a request of ours."""
        for grant in grants:
            self._know(grant, now=now)
            self._answered[grant.shadow_uid] = now

    def listed(self, node: NodeName, grants: Iterable[Grant], *, asked: float) -> bool:
        """Take in all that a node's List says of this mount; tell whether it is news."""
        self.unanswered.pop(node, None)
        before = {uid: g for uid, g in self._grants.items() if g.place.node == node}
        said = {
            grant.shadow_uid: grant
            for grant in grants
            if grant.phase is not GrantPhase.REMOVED or grant.shadow_uid in before
        }
        news = {
            uid
            for uid in before.keys() | said.keys()
            if self._answered.get(uid, 0.0) < asked and before.get(uid) != said.get(uid)
        }
        for uid in news:
            if uid in said:
                self._know(said[uid], now=asked)
            else:  # what was released stays so: lists do not name it, and its pod may still end
                self._grants.pop(uid, None)
                self._ended.pop(uid, None)
        for uid in self._answered.keys() - self._grants.keys():
            if self._answered[uid] < asked - OLD_S:
                del self._answered[uid]
        return bool(news)

    def unheard(self, node: NodeName, *, now: float) -> None:
        """Take note that its agent did not answer a request of ours."""
        before = self.unanswered.get(node, Silence(now, 0))
        self.unanswered[node] = replace(before, times=before.times + 1)

    def discharge(self, shadows: frozenset[PodUID]) -> None:
        """Take it that these gave everything back, although no agent says so."""
        self.end_applies(shadows)
        self.released.update(shadows)
        for uid in shadows & self._grants.keys():
            self._grants[uid] = replace(self._grants[uid], phase=GrantPhase.REMOVED)

    def _know(self, grant: Grant, *, now: float) -> None:
        self._grants[grant.shadow_uid] = grant
        self.noted(grant.place.node)
        if grant.phase is GrantPhase.TARGET_ENDED:
            self._ended.setdefault(grant.shadow_uid, now)
        else:
            self._ended.pop(grant.shadow_uid, None)

    def agrees(self, node: NodeName, grants: Iterable[Grant]) -> bool:
        """Tell whether that is what is known of the mount there."""
        known = [grant for grant in self._grants.values() if grant.place.node == node]
        return _standing(known) == _standing(grants)

    def doubt(self, node: NodeName) -> bool:
        """Take nothing on that node for granted any more; tell whether something was.

        Its agent has been silent too long: who knows what has become of the container since.
        """
        doubted = {
            uid: replace(grant, phase=GrantPhase.WAITING)
            for uid, grant in self._grants.items()
            if grant.place.node == node and is_granted(grant)
        }
        self._grants.update(doubted)
        return bool(doubted)

    def prune(self, shadows: Iterable[PodUID]) -> None:
        """Forget what was given back by shadow pods that do not exist any more."""
        known = set(shadows)
        for uid in (self._given_back() | self.released) - known:
            self._forget(uid)

    def are_granted(self, shadows: Iterable[PodUID]) -> bool:
        """Tell whether all of these are known to open."""
        return all(is_granted(self._grants.get(uid)) for uid in shadows)

    def is_chosen(self, shadow_uid: PodUID) -> bool:
        """Tell whether an agent has said which devices the kubelet chose for a shadow pod."""
        grant = self._grants.get(shadow_uid)
        return grant is not None and bool(grant.devices)

    def is_empty(self) -> bool:
        """Tell whether nothing of the mount is left at any agent."""
        is_asking = any(part.apply_task is not None for part in self._parts.values())
        return not is_asking and self._grants.keys() <= self._given_back()

    def shadows_in(self, place: Place) -> frozenset[PodUID]:
        """Return the shadow pods of which an agent spoke in that place."""
        return frozenset(uid for uid, g in self._grants.items() if g.place == place)

    def _given_back(self) -> set[PodUID]:
        return {uid for uid, g in self._grants.items() if g.phase is GrantPhase.REMOVED}

    def _forget(self, shadow_uid: PodUID) -> None:
        """When it was answered stays: a List that was asked before must not bring it back."""
        self._grants.pop(shadow_uid, None)
        self._ended.pop(shadow_uid, None)
        self.released.discard(shadow_uid)


def _standing(grants: Iterable[Grant]) -> dict[PodUID, Grant]:
    return {g.shadow_uid: g for g in grants if g.phase is not GrantPhase.REMOVED}


class Memories:
    """By the DeviceMount's UID."""

    def __init__(self) -> None:
        self._of: dict[str, Memory] = {}
        self._on: dict[NodeName, set[str]] = defaultdict(set)  # or was there: looked up, then asked

    def of(self, mount_uid: str) -> Memory:
        if (memory := self._of.get(mount_uid)) is None:
            memory = self._of[mount_uid] = Memory(noted=partial(self._note, mount_uid))
        return memory

    def listed(
        self, mount_uid: str, node: NodeName, grants: Sequence[Grant], *, asked: float
    ) -> bool:
        """Take in what a node's List says of a mount, except that one long gone is gone."""
        removed = all(grant.phase is GrantPhase.REMOVED for grant in grants)
        if removed and mount_uid not in self._of:
            return False
        return self.of(mount_uid).listed(node, grants, asked=asked)

    def agrees(self, mount_uid: str, node: NodeName, grants: Iterable[Grant]) -> bool:
        """Tell whether that is what is known of a mount on that node."""
        return self._of.get(mount_uid, Memory()).agrees(node, grants)

    def doubt(self, node: NodeName) -> tuple[str, ...]:
        """Take nothing on that node for granted any more; return the mounts that this concerns."""
        return tuple(uid for uid in self.on(node) if self._of[uid].doubt(node))

    def is_chosen(self, mount_uid: str, shadow_uid: PodUID) -> bool:
        """Tell whether an agent has said which devices the kubelet chose for a shadow pod."""
        memory = self._of.get(mount_uid)
        return memory is not None and memory.is_chosen(shadow_uid)

    def uids(self) -> tuple[str, ...]:
        return tuple(self._of)

    async def close(self) -> None:
        """Give up every Apply in flight."""
        parts = [part for memory in self._of.values() for part in memory.parts().values()]
        tasks = [part.apply_task for part in parts if part.apply_task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self, mount_uid: str) -> None:
        self._of.pop(mount_uid, None)

    def nodes(self) -> frozenset[NodeName]:
        """Return the nodes whose agents have something of any mount."""
        return frozenset(
            node for node, uids in self._on.items() if any(self._is_on(uid, node) for uid in uids)
        )

    def on(self, node: NodeName) -> frozenset[str]:
        """Return the mounts of which that node's agent has something."""
        there = {uid for uid in self._on.get(node, ()) if self._is_on(uid, node)}
        if there:
            self._on[node] = there
        else:
            self._on.pop(node, None)
        return frozenset(there)

    def _note(self, mount_uid: str, node: NodeName) -> None:
        self._on[node].add(mount_uid)

    def _is_on(self, mount_uid: str, node: NodeName) -> bool:
        memory = self._of.get(mount_uid)
        return memory is not None and node in memory.nodes()
