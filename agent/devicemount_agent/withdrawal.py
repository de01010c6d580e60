# SPDX-License-Identifier: Apache-2.0
"""Takes devices back: looks for who holds them, ends access, and clears what was placed.

Callers hold the lock of the target pod, as for grafts.py, whose grants these are; not to strike and
to hunt, which are for losses, have threads of their own, and use no descriptor of a container. A
device is only called gone when a search after its revocation found nobody who has it, while the
target pod was stopped: of one that goes on, some process may have it.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from devicemount_agent.container.cgroup import pod_cgroup, processes_in
from devicemount_agent.container.find import Container
from devicemount_agent.errors import DeviceMountError, NodeUnavailable
from devicemount_agent.graft import edits, graft
from devicemount_agent.grafts import Grafts, facts
from devicemount_agent.holders import names
from devicemount_agent.holders.end import Ending, Stopped, Terms
from devicemount_agent.holders.freeze import QUICK_S, WAIT_S, Freezer
from devicemount_agent.holders.search import (
    HANDED_ON,
    Ask,
    Question,
    Rules,
    Sighting,
    Users,
    find,
    nobody,
    search,
    sightings,
    unnamed,
    unstopped,
)
from devicemount_agent.ledger import Grant, access_of
from devicemount_agent.logs import line
from devicemount_agent.model import ContainerID, DeviceNumber, PodUID
from devicemount_agent_api.failpoints import Failpoint, fire

SEARCHERS = 2
HUNTERS = 2  # of what is lost: others' searches must not delay them
STRIKERS = 4  # nor each other's
ASK_S = 0.5  # the runtime answers in milliseconds; a thread waits, and maybe a stopped pod

Sightings = tuple[Sighting, ...]


@dataclass(frozen=True, slots=True)
class _Pod:
    """The target pod, as far as it was stopped."""

    directory: Path | None  # of its containers; None: it has ended
    is_stopped: bool

    def pids(self) -> Iterable[int]:
        return processes_in(self.directory) if self.directory else ()


log = logging.getLogger(__name__)


class Withdrawal:
    """The way out, of all grants of the node."""

    def __init__(
        self,
        grafts: Grafts,
        *,
        hold: Path,
        freezer: Freezer,
        container: names.Ask,
        users: Users = nobody,
    ) -> None:
        self._grafts = grafts
        self._hold = hold
        self._freezer = freezer
        self._container = container
        self._users = users
        self._searchers = ThreadPoolExecutor(SEARCHERS, thread_name_prefix="search")
        self._hunters = ThreadPoolExecutor(HUNTERS, thread_name_prefix="hunt")
        self._strikers = ThreadPoolExecutor(STRIKERS, thread_name_prefix="strike")
        self._endings: dict[PodUID, Ending] = {}  # by Terminate
        self._hunts: dict[PodUID, Ending] = {}  # by losses

    async def release(self, grants: Collection[Grant]) -> bool:
        """Take devices back that nobody holds; say whether they are gone.

        Looks before it revokes, so that a job that holds a device is not disturbed by each
        attempt; and again after it: who slipped in keeps it, and all are granted again.
        """
        self._stop_ending(grants)
        if await self._is_held(grants):
            return False
        revoked = self._grafts.live & _uids(grants)
        is_held = True
        try:
            await self._grafts.revoke(grants)
            fire(Failpoint.AGENT_AFTER_REVOKE)
            is_held = await self._is_held_frozen(grants)
        finally:  # also where it cannot be seen
            if is_held:
                await self._grafts.permit_again(grants, revoked)
        if is_held:
            return False
        await self._clear(grants)
        return True

    async def terminate(
        self,
        grants: Collection[Grant],
        *,
        grace_s: float,
        mains: frozenset[int],
        spared: frozenset[int],
    ) -> bool:
        """Take devices back and end who holds them in the target pod; say whether they are gone.

        One round: TERM at first sight, KILL once the grace has passed since the first round. Until
        nobody is left access stays revoked, and the caller calls again. `mains` are the pids of
        main processes, and `spared` those of processes that are not ended.
        """
        await self._grafts.revoke(grants)
        fire(Failpoint.AGENT_AFTER_REVOKE)
        is_held = False
        for grant in grants:
            ending = self._endings.setdefault(grant.shadow.uid, Ending())
            terms = Terms(
                kill_at=ending.since + grace_s,
                pods=frozenset({grant.key.pod_uid}),
                spared=spared,
            )
            question = replace(self._question(grant, grants), first=mains)
            end = partial(
                ending.round, question, terms, stopped=self._reaching(grant, within_s=WAIT_S)
            )
            is_held |= await self._is_seen(grant, self._searchers, end)
        if is_held or await self._is_held_frozen(grants):
            return False
        self._stop_ending(grants)
        await self._clear(grants)
        return True

    async def strike(self, grant: Grant) -> None:
        """Kill at once who holds a lost grant's devices in the target pod.

        Quick, so that of many losses at a time none waits for the search of another. Not under the
        pod's lock.
        """
        question = self._question(grant, (grant,))
        strike = partial(Ending().strike, question, self._reaching(grant, within_s=QUICK_S))
        await asyncio.get_running_loop().run_in_executor(self._strikers, strike)

    async def hunt(self, grant: Grant, *, kill_at: float) -> bool:
        """End who holds a lost grant's devices; say whether nobody does any more.

        One round, of all holders in whatever pod: TERM before `kill_at` (a monotonic time), KILL
        from then on. Until nobody is left the caller calls again. Not under the pod's lock: what is
        searched are processes, and access has ended already.
        """
        ending = self._hunts.setdefault(grant.shadow.uid, Ending())
        question, terms = self._question(grant, (grant,)), Terms(kill_at=kill_at)
        end = partial(ending.round, question, terms, stopped=self._reaching(grant, within_s=WAIT_S))
        is_held = await self._is_seen(grant, self._hunters, end)
        return not is_held and not await self._is_held_frozen((grant,), self._hunters)

    async def bury(self, grant: Grant) -> None:
        """Clear what a lost grant that nobody holds any more had in its container."""
        self._stop_ending((grant,))
        self._hunts.pop(grant.shadow.uid, None)
        await self._clear((grant,))

    async def ended(self, shadows: Collection[PodUID], *, until: float) -> None:
        """Wait until the processes that hold these devices have ended, or until a monotonic time.

        Not under the pod's lock. Whether the devices are free then, the next round tells.
        """
        await self._grafts.holders.ended(shadows, until=until)

    async def undo(self, grant: Grant, former: Grant | None = None) -> None:
        """Take back a grant that did not come to its commit, to what stood before it.

        Where somebody opened the device meanwhile, the intent stays, for `Remove` to find them; so
        does one that was lost meanwhile, for its loss.
        """
        uid = grant.shadow.uid
        if uid in self._grafts.live | self._grafts.doubtful:  # also what an attempt before this did
            await self._grafts.revoke((grant,))
            if await self._is_held_frozen((grant,)):
                log.warning(line("revoked held", **facts(grant)))
                return
            await self._clear((grant,))
        if uid in self._grafts.lost:
            return
        if former is None:
            self._grafts.drop(grant)
        else:
            self._grafts.restore(former)

    def keep(self, grant: Grant) -> None:
        """Take note that it is to be granted (again): nobody is ended or waited for any more."""
        self._stop_ending((grant,))
        self._grafts.holders.forget(grant.shadow.uid)

    # ---- who holds them

    async def _is_held(self, grants: Collection[Grant]) -> bool:
        """Search every process of the node; note who holds them; say whether one blocks."""
        found = [
            await self._is_seen(
                grant, self._searchers, partial(search, self._question(grant, grants))
            )
            for grant in grants
        ]
        return any(found)

    async def _is_held_frozen(
        self, grants: Collection[Grant], threads: ThreadPoolExecutor | None = None
    ) -> bool:
        """The same, with the target pod stopped while its own processes are searched."""
        found = [
            await self._is_seen(
                grant,
                threads or self._searchers,
                partial(
                    self._search_frozen,
                    self._question(grant, grants),
                    (grant.key.pod_uid, grant.container_id),
                    directory=self._directory(grant),
                ),
            )
            for grant in grants
        ]
        return any(found)

    def _search_frozen(
        self, question: Question, owner: tuple[PodUID, ContainerID], *, directory: Path | None
    ) -> Sightings:
        """Search; that nobody is seen is a proof only of a pod that was stopped meanwhile, and of
        who was seen in it only that it is not the one any more which has ended since."""
        with self._stopped(question.target, directory, within_s=WAIT_S) as pod:
            inside = list(find(question, among=pod.pids()))
        seen = {one.pid for one in inside}
        outside = (one for one in find(question) if one.pid not in seen)
        told = sightings(question, [*inside, *outside])
        if any(one.holder.blocking for one in told):
            return told
        if not pod.is_stopped:
            return (*unstopped(pod.pids(), owner, cgroup_root=question.cgroup_root), *told)
        has_handed_on = any(one.blocking for one in inside)
        return (*unnamed(owner, HANDED_ON), *told) if has_handed_on else told

    def _directory(self, grant: Grant) -> Path | None:
        """Return the target pod's cgroup: also others of its containers may have the device."""
        running = (container.cgroup.path.parent for container in self._grafts.running((grant,)))
        return next(running, None)

    def _reaching(self, grant: Grant, *, within_s: float) -> Stopped:
        """Return what stops the target pod for those who end holders in it, as far as it stops."""
        directory = self._directory(grant)

        @contextmanager
        def stopped() -> Iterator[Iterable[int]]:
            with self._stopped(grant.key.pod_uid, directory, within_s=within_s) as pod:
                yield pod.pids()

        return stopped

    @contextmanager
    def _stopped(
        self, pod_uid: PodUID, directory: Path | None, *, within_s: float
    ) -> Iterator[_Pod]:
        directory = directory or pod_cgroup(pod_uid)
        if directory is None:
            yield _Pod(None, is_stopped=True)
            return
        with self._freezer.frozen(pod_uid, directory, within_s=within_s) as is_stopped:
            yield _Pod(directory, is_stopped)

    async def _is_seen(
        self, grant: Grant, threads: ThreadPoolExecutor, look: Callable[[], Sightings]
    ) -> bool:
        """Look in a thread: a slow search must not delay the end of access elsewhere. Note who
        holds the grant's devices, and say whether one of those that were seen blocks."""
        found = await asyncio.get_running_loop().run_in_executor(threads, look)
        named = await names.added(found, self._container)
        self._grafts.holders.note(grant.shadow.uid, named)
        return any(one.holder.blocking for one in named)

    def _stop_ending(self, grants: Iterable[Grant]) -> None:
        for uid in _uids(grants):
            self._endings.pop(uid, None)

    def _question(self, grant: Grant, leaving: Collection[Grant]) -> Question:
        granted: set[tuple[ContainerID, DeviceNumber]] = {
            (other.container_id, number)
            for other in self._grafts.ledger.grants.values()
            if other.shadow.uid in self._grafts.live and not _same_container(other, grant)
            for number in other.access()
        }
        return Question(
            numbers=frozenset(self._own_numbers(grant, leaving)),
            target=grant.key.pod_uid,
            shadow=grant.shadow.uid,
            granted=frozenset(granted),
            hold=self._hold,
            users=self._users,
            rules=self._rules(grant),
        )

    def _rules(self, grant: Grant) -> Ask:
        """Return what a thread asks the runtime by; of the target container that was done."""
        loop = asyncio.get_running_loop()
        known = {container.id: container for container in self._grafts.running((grant,))}

        def rules(container_id: ContainerID) -> Rules | None:
            if container_id in known:
                return known[container_id]
            asking = asyncio.run_coroutine_threadsafe(self._facts(container_id), loop)
            try:
                return asking.result(ASK_S)
            except (NodeUnavailable, TimeoutError) as error:
                asking.cancel()
                log.info(line("runtime silent", container=container_id[:12], error=repr(error)))
                return None

        return rules

    async def _facts(self, container_id: ContainerID) -> Rules | None:
        return await self._container(container_id)

    def _own_numbers(self, grant: Grant, leaving: Collection[Grant]) -> set[DeviceNumber]:
        """Return the numbers that no grant which stays gives to the same container."""
        going = _uids(leaving)
        stay = (
            other
            for other in self._grafts.ledger.grants.values()
            if other.shadow.uid in self._grafts.live - going and _same_container(other, grant)
        )
        return grant.numbers() - set(access_of(stay))

    # ---- what was placed

    async def _clear(self, grants: Collection[Grant]) -> None:
        """Remove what we made and nobody else of ours needs."""
        leaving = _uids(grants)
        for grant in grants:
            staying = tuple(
                other
                for other in self._grafts.ledger.in_container(grant.container_id)
                if other.shadow.uid not in leaving
            )
            for container in self._grafts.running((grant,)):
                try:
                    left = await asyncio.to_thread(_displace, container, grant, staying)
                except (OSError, DeviceMountError) as error:
                    left = f"{','.join(sorted(grant.made))}: {error}"
                if left:  # access is gone: who protects a node or a mount keeps no device by it
                    log.warning(line("left in container", **facts(grant), error=left))
        fire(Failpoint.AGENT_AFTER_CLEAR)


def _displace(container: Container, grant: Grant, staying: Collection[Grant]) -> str:
    """Remove what only this grant needs: links, mounts, their mount points, nodes.

    Returns what could not be reached. Whatever fails, the rest is tried.
    """
    try:
        container.follow(graft.supported)
    finally:
        left = _displace_here(container, grant, staying)
    return left


def _displace_here(container: Container, grant: Grant, staying: Collection[Grant]) -> str:
    bound = {b.place for other in staying for b in other.bound}
    linked = {link for other in staying for link in other.linked}
    nodes = {node.path for other in staying for node in other.nodes()}
    points = {b.path for other in staying for b in other.bound}
    made = grant.made - points - nodes
    graft_nodes = {node.path for node in grant.nodes()} - {b.path for b in grant.bound}
    try:
        edits.displace(
            container,
            [b for b in grant.bound if b.place not in bound],
            [link for link in grant.linked if link not in linked],
            made - graft_nodes,
        )
    finally:
        in_dev = frozenset(path for path in made if path.startswith("/dev/"))
        left = graft.displace(container, grant.nodes(), in_dev)
    return "; ".join(left)


def _same_container(one: Grant, other: Grant) -> bool:
    """Tell whether both are of one target container, be it in its former or its current run."""
    return (one.key.pod_uid, one.target.container) == (other.key.pod_uid, other.target.container)


def _uids(grants: Iterable[Grant]) -> set[PodUID]:
    return {grant.shadow.uid for grant in grants}
