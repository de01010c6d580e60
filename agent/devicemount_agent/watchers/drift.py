# SPDX-License-Identifier: Apache-2.0
"""Notices that somebody changed what a grafted container may do, and gives back what was taken.

systemd attaches its own filter anew (daemon-reload, set-property, an in-place resize), crun
replaces it, and nothing tells whose. So every grafted container is looked at, by one system call
each, four times a second where something tells of a change (stir), else once, in a thread that
wakes the event loop only when there is something to do. What its other cgroups below have is looked
at in turn. What is given back is what the journal says at that moment, never what the kernel still
has: nothing that is lost, withheld or revoked comes back by this. Each repair is a task under its
pod's lock, so that a pod that is worked on for long delays no other.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from operator import is_

from devicemount_agent import metrics
from devicemount_agent.bell import Bell
from devicemount_agent.errors import DeviceMountError, FilterBlocked, TargetNotRunning
from devicemount_agent.graft.standing import Eye, Standing
from devicemount_agent.graft.subtree import changed_below
from devicemount_agent.graft.target import below
from devicemount_agent.grafts import Grafts, facts
from devicemount_agent.kernel.bpf import EffectivePrograms
from devicemount_agent.ledger import Grant, Ledger, Stage
from devicemount_agent.logs import line
from devicemount_agent.model import Concern, ContainerID, PodUID
from devicemount_agent.watchers.stir import Stir

SWEEP_S = 0.25
BELOW_PER_SWEEP = 16  # other cgroups looked at: 64 a second, however many a tenant makes
FIRST_RETRY_S, LAST_RETRY_S = 0.25, 30.0  # after what could not be repaired; doubled each time
BURST_S = 10.0  # repairs that follow each other more closely are one burst
BURST_LIMIT_S = 60.0  # then one that goes on is told of, and is another

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Burst:
    """Repairs of one container that follow each other."""

    count: int
    first_s: float
    last_s: float

    def end_s(self) -> float:
        """Return when it is over, if nothing follows."""
        return min(self.last_s + BURST_S, self.first_s + BURST_LIMIT_S)


@dataclass(slots=True)
class _Retry:
    """When to try once more what could not be repaired."""

    at_s: float
    delay_s: float = FIRST_RETRY_S


class Drift:
    """Of all containers with grants that stand."""

    def __init__(self, grafts: Grafts, bell: Bell) -> None:
        self._grafts = grafts
        self._stir = Stir(bell)
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="drift")
        self._one_at_a_time = asyncio.Lock()
        self._wanted = threading.Event()  # the looker is to come back
        self._next_s = 0.0  # when it looks again
        self._programs = EffectivePrograms()
        self._eyes: dict[ContainerID, Eye] = {}  # changed between looks only
        self._sights: list[tuple[ContainerID, Callable[[], bytes], bytes]] = []  # what they read
        self._ledger: Ledger | None = None  # of which, with these live, these are known
        self._live: frozenset[PodUID] = frozenset()
        self._known: frozenset[ContainerID] = frozenset()
        self._stood: dict[ContainerID, Standing] = {}  # on which there are eyes
        self._turn = self._below_in_turn()
        self._under_way: dict[ContainerID, asyncio.Task[None]] = {}
        self._retries: dict[ContainerID, _Retry] = {}
        self._bursts: dict[ContainerID, _Burst] = {}

    async def watch(self) -> None:
        """Look at all, over and over, for ever."""
        said = ""
        try:
            while True:
                try:
                    await self._sweep(self._look_on)
                    said = ""
                except OSError as error:  # we are short of something
                    if str(error) != said:
                        log.error(line("could not look for drift", error=error))
                    said = str(error)
                    self._turn = self._below_in_turn()  # it may have ended by that
                    await asyncio.sleep(SWEEP_S)
        finally:
            self._wanted.set()
            self._looker.shutdown()  # a look under way ends within milliseconds
            for eye in self._eyes.values():
                eye.close()

    async def finish(self) -> None:
        """Wait for repairs that have begun."""
        if self._under_way:
            await asyncio.wait(self._under_way.values())

    async def sweep(self) -> None:
        """Look once at every container, and begin to repair those that are not as they stood."""
        self._wanted.set()
        await self._sweep(self._look_at_all)

    async def _sweep(self, look: Callable[[], list[ContainerID]]) -> None:
        loop = asyncio.get_running_loop()
        async with self._one_at_a_time:
            self._wanted.clear()
            containers = self._containers()
            self._follow(containers)
            changed = set(await loop.run_in_executor(self._looker, look))
            now_s = loop.time()
            if len(self._eyes) < len(containers):
                blind = containers - self._eyes.keys()
                changed |= {one for one in blind if one not in self._retries}
            changed |= {one for one, retry in self._retries.items() if now_s >= retry.at_s}
            for container_id in (changed & containers) - self._under_way.keys():
                eye = self._eyes.get(container_id)
                repair = self._repair(container_id, None if eye is None else eye.standing)
                self._under_way[container_id] = loop.create_task(repair)
            self._end_bursts(now_s)

    def _containers(self) -> frozenset[ContainerID]:
        """Return those of grants that stand; forget how others stood."""
        ledger, live = self._grafts.ledger, self._grafts.live
        if ledger is not self._ledger or live != self._live:
            self._ledger, self._live = ledger, frozenset(live)
            grants = ledger.grants.values()
            self._known = frozenset(g.container_id for g in grants if _stands(g, live))
            for gone in set(self._grafts.standing) - {grant.container_id for grant in grants}:
                self._grafts.standing.pop(gone, None)
            for gone in self._retries.keys() - self._known:
                del self._retries[gone]
        return self._known

    def _follow(self, containers: frozenset[ContainerID]) -> None:
        """Have an eye on each container, on how it stands by now."""
        standing = self._grafts.standing
        for container_id in containers:
            stands, eye = standing.get(container_id), self._eyes.get(container_id)
            if eye is not None and eye.standing is not stands:
                self._eyes.pop(container_id).close()
                eye = None
            if eye is None and stands is not None:
                try:
                    self._eyes[container_id] = Eye(stands, self._programs)
                except FileNotFoundError:  # its end, or its processes moved: a repair tells which
                    standing.pop(container_id, None)
        for container_id in self._eyes.keys() - containers:
            self._eyes.pop(container_id).close()
        self._stood = dict(standing)
        self._sights = [
            (container_id, eye.read, eye.standing.rules) for container_id, eye in self._eyes.items()
        ]
        self._stir.follow(self._eyes.values())

    def _look_on(self) -> list[ContainerID]:
        """Look every SWEEP_S until something is to be done. In a thread: the kernel may be busy."""
        until_s = self._due_s()
        is_followed = self._next_s <= time.monotonic()  # it came back for that, when it was due
        while not self._wanted.wait(self._next_s - time.monotonic()):
            if not is_followed and self._is_outdated():
                return []
            now_s, is_followed = time.monotonic(), False
            self._next_s = now_s + SWEEP_S
            changed = self._look(now_s)
            if changed or now_s >= until_s:
                return changed
        return []

    def _due_s(self) -> float:
        """Return when something is to be tried again, or told; at once where there is no eye."""
        if self._known - self._eyes.keys() - self._retries.keys():
            return -math.inf
        retries = (retry.at_s for retry in tuple(self._retries.values()))
        bursts = (burst.end_s() for burst in tuple(self._bursts.values()))
        return min((*retries, *bursts), default=math.inf)

    def _is_outdated(self) -> bool:
        """Say whether others are to be looked at. All that is compared here holds the GIL."""
        return (
            self._grafts.ledger is not self._ledger
            or self._grafts.live != self._live
            or not _are_same(self._grafts.standing, self._stood)
        )

    def _look_at_all(self) -> list[ContainerID]:
        self._stir.look()
        return self._look(time.monotonic())

    def _look(self, now_s: float) -> list[ContainerID]:
        """Return which containers are not as they stood."""
        changed = self._changed() if self._stir.is_due(now_s) else []
        changed += [cid for cid in islice(self._turn, BELOW_PER_SWEEP) if cid is not None]
        return changed

    def _changed(self) -> list[ContainerID]:
        changed = []
        for container_id, read, rules in self._sights:  # hundreds: nothing is called twice
            try:
                if read() == rules:
                    continue
            except OSError:
                pass  # a cgroup that is gone is not as it stood
            changed.append(container_id)
        return changed

    def _below_in_turn(self) -> Iterator[ContainerID | None]:
        """Look at one more cgroup each time, for ever; yield whose it is if it has changed."""
        while True:
            yield None
            for container_id, eye in tuple(self._eyes.items()):
                yield None
                # An eye that has been closed meanwhile is not looked through any more.
                if self._eyes.get(container_id) is eye and eye.may_have_others():
                    for level in below(eye.standing.top):
                        is_changed = changed_below(eye.standing, level)
                        yield container_id if is_changed else None

    async def _repair(self, container_id: ContainerID, seen: Standing | None) -> None:
        """Repair a container that was seen not to be as it stood; log what keeps it from that."""
        try:
            grants = self._grants(container_id)
            if not grants:
                return
            async with self._grafts.lock(grants[0].key.pod_uid):
                # Whoever had the lock before may have told the kernel all anew.
                grants = self._grants(container_id)
                if grants and self._grafts.standing.get(container_id) is seen:
                    await self._repair_now(container_id, grants)
        finally:
            del self._under_way[container_id]

    def _grants(self, container_id: ContainerID) -> tuple[Grant, ...]:
        grants = self._grafts.ledger.in_container(container_id)
        return tuple(grant for grant in grants if _stands(grant, self._grafts.live))

    async def _repair_now(self, container_id: ContainerID, grants: tuple[Grant, ...]) -> None:
        running = self._grafts.running(grants)
        if not running:  # its end is noticed elsewhere; nothing is looked at until then
            self._grafts.standing.pop(container_id, None)
            self._put_off(container_id)
        for container in running:
            try:
                if await self._grafts.repair(container):
                    self._note_repaired(container_id, grants)
                await self._grafts.check_access(container)
            except TargetNotRunning:  # its end is noticed elsewhere, or just its processes moved
                self._put_off(container_id)
            except FilterBlocked as error:
                self._put_off(container_id)
                self._note_blocked(grants, Concern("FilterBlocked", str(error)))
            except BlockingIOError as error:  # somebody changes it faster than we: not for long
                self._put_off(container_id, at_most_s=FIRST_RETRY_S)
                self._note_blocked(grants, Concern("FilterBlocked", str(error)))
            except (DeviceMountError, OSError) as error:
                self._put_off(container_id)
                log.warning(line("not repaired", **facts(grants[0]), error=error))
            else:
                self._retries.pop(container_id, None)
                self._grafts.note_usable(grants)

    def _put_off(self, container_id: ContainerID, *, at_most_s: float = LAST_RETRY_S) -> None:
        """Try again later, and later each time: by then somebody may have changed something."""
        now_s = asyncio.get_running_loop().time()
        before = self._retries.get(container_id, _Retry(now_s, FIRST_RETRY_S / 2))
        delay_s = min(before.delay_s * 2, at_most_s)
        self._retries[container_id] = _Retry(now_s + delay_s, delay_s)
        self._wanted.set()

    # ---- what is told

    def _note_blocked(self, grants: tuple[Grant, ...], why: Concern) -> None:
        """Say that granted devices cannot be used: once, until the reason is another."""
        news = [grant for grant in grants if self._grafts.concerns(grant) != (why,)]
        for grant in news:
            log.error(line("blocked", **facts(grant), why=why.message))
        self._grafts.note_blocked(news, why)

    def _note_repaired(self, container_id: ContainerID, grants: tuple[Grant, ...]) -> None:
        """Count a repair; the first of a burst is logged at once."""
        metrics.drift_repairs.add()
        for grant in grants:
            self._grafts.history.repairs[grant.shadow.uid] += 1
            self._grafts.changes.note(grant.key)
        now_s = asyncio.get_running_loop().time()
        burst = self._bursts.get(container_id)
        if burst is not None:
            burst.count, burst.last_s = burst.count + 1, now_s
            return
        self._bursts[container_id] = _Burst(count=1, first_s=now_s, last_s=now_s)
        self._wanted.set()
        for grant in grants:
            log.warning(line("repaired", **facts(grant)))

    def _end_bursts(self, now_s: float) -> None:
        for container_id, burst in tuple(self._bursts.items()):
            if now_s < burst.end_s():
                continue
            del self._bursts[container_id]
            if burst.count > 1:
                over_s = f"{burst.last_s - burst.first_s:.1f}"
                log.warning(
                    line(
                        "repaired repeatedly",
                        container=container_id[:12],
                        times=burst.count,
                        over_s=over_s,
                    )
                )


def _are_same(
    standing: Mapping[ContainerID, Standing], former: Mapping[ContainerID, Standing]
) -> bool:
    """Tell whether these are the very same, each of them. In another order they may be not."""
    return len(standing) == len(former) and all(map(is_, standing.values(), former.values()))


def _stands(grant: Grant, live: Collection[PodUID]) -> bool:
    return grant.stage is Stage.COMMITTED and grant.shadow.uid in live
