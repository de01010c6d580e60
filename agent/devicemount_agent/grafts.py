# SPDX-License-Identifier: Apache-2.0
"""Carries grants into the kernel and out again, each step with its record in the journal.

The kernel is always told the whole of what a container may do by us (several mounts share a
container, and numbers), so every change is: change what is live, then permit exactly that. Callers
hold the lock of the target pod. Blocking work runs in threads, on snapshots taken before.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict
from weakref import WeakValueDictionary

from devicemount_agent.container.find import Container
from devicemount_agent.container.known import KnownContainers
from devicemount_agent.errors import NodeUnavailable, ReservationLost
from devicemount_agent.graft import graft, verify
from devicemount_agent.holders import end, search
from devicemount_agent.journal import Journal
from devicemount_agent.ledger import (
    Committed,
    Earlier,
    Grant,
    Granted,
    Ledger,
    Lost,
    Removed,
    Stage,
    access_of,
)
from devicemount_agent.logs import line
from devicemount_agent.model import ContainerID, DeviceNode, DeviceNumber, Holder, PodUID
from devicemount_agent.timeline import Timeline
from devicemount_agent_api.failpoints import Failpoint, fire

SEARCHERS = 2

log = logging.getLogger(__name__)


class Grafts:
    """All grants of the node, as the journal has them and as the kernel has them."""

    def __init__(self, journal: Journal, containers: KnownContainers, *, hold: Path) -> None:
        self._journal = journal
        self._containers = containers
        self._hold = hold
        self._searchers = ThreadPoolExecutor(SEARCHERS, thread_name_prefix="search")
        self._locks: WeakValueDictionary[PodUID, asyncio.Lock] = WeakValueDictionary()
        self.live: set[PodUID] = set()  # shadow pods whose devices the kernel is to allow
        self.doubtful: set[PodUID] = set()  # whatever the journal says, not known to be usable now
        self.holders: dict[PodUID, tuple[Holder, ...]] = {}  # that keep a shadow pod's devices

    @property
    def ledger(self) -> Ledger:
        return self._journal.ledger

    def lock(self, pod_uid: PodUID) -> asyncio.Lock:
        """Return the one lock of a target pod: whoever changes a grant of it holds it."""
        return self._locks.setdefault(pod_uid, asyncio.Lock())

    # ---- in

    async def intend(self, grant: Grant, container: Container) -> Grant:
        """Write the intent, with what cgroup v1 allowed before us.

        Raises NodeUnavailable, ReservationLost.
        """
        made = await asyncio.to_thread(graft.missing, container, grant.nodes())
        # From here on nothing waits: what others of ours have in the container must not be taken
        # for the container's own.
        self._check_not_lost(grant)
        numbers = grant.access().keys()
        before = self.ledger.earlier_in(container.id)
        fresh = frozenset(numbers - before.keys())
        before |= graft.earlier(container, fresh)
        earlier = tuple(Earlier(n, before[n]) for n in sorted(numbers) if n in before)
        former = self.ledger.grants.get(grant.shadow.uid)
        if former is not None and former.container_id == container.id:
            made |= former.made
        intent = replace(grant, earlier=earlier, made=made)
        self._journal.append(Granted(intent))
        return intent

    async def bring_in(self, grant: Grant, container: Container, timeline: Timeline) -> Grant:
        """Permit, place, verify. Idempotent. Raises DeviceMountError."""
        container.check()
        self._check_not_lost(grant)
        self.live.add(grant.shadow.uid)
        try:
            made = await self._permit_and_place(container, grant.nodes())
            timeline.mark("granted")
            fire(Failpoint.AGENT_AFTER_GRANT)
            await asyncio.to_thread(verify.verify, container, grant.nodes(), hold=self._hold)
        except OSError as error:
            container.check()
            raise NodeUnavailable(f"container {container.id[:12]}: {error}") from error
        timeline.mark("verified")
        return replace(grant, made=grant.made | made)

    def commit(self, grant: Grant, timeline: Timeline) -> None:
        """Write that the grant stands. Raises NodeUnavailable."""
        fire(Failpoint.AGENT_BEFORE_COMMIT)
        uid = grant.shadow.uid
        self._journal.append(Committed(uid, grant.made, time.time_ns()))
        self.doubtful.discard(uid)
        self.holders.pop(uid, None)
        timeline.mark("committed")
        took_ms = timeline.steps_us["committed"] / 1000
        log.info(line("granted", **facts(grant), took_ms=f"{took_ms:.1f}"))

    # ---- out

    async def release(self, grants: Collection[Grant]) -> bool:
        """Take devices back that nobody holds; say whether they are gone.

        Looks before it revokes, so that a job that holds a device is not disturbed by each
        attempt; and again after it: who slipped in keeps it, and all are granted again.
        """
        if await self._look(grants):
            return False
        revoked = self.live & {grant.shadow.uid for grant in grants}
        await self._revoke(grants)
        if await self._look(grants):
            self.live |= revoked
            await self._permit_all(grants)
            self.doubtful -= revoked
            return False
        await self._clear(grants)
        return True

    async def lose(self, grants: Collection[Grant]) -> bool:
        """Take devices back that are about to be another's; say whether nobody holds them any more.

        Revokes first, kills who holds them, and goes on where the journal cannot be written.
        """
        for grant in grants:
            if grant.stage is not Stage.LOST:
                self._note_lost(grant)
        await self._revoke(grants)
        for grant in grants:
            kill = partial(
                end.kill, frozenset(self._own_numbers(grant, grants)), **self._whose(grant)
            )
            self.holders[grant.shadow.uid] = await self._searching(kill)
        await self._clear(grants)
        return not any(self.holders[grant.shadow.uid] for grant in grants)

    async def undo(self, grant: Grant) -> None:
        """Take back a grant that did not come to its commit.

        Where somebody opened the device meanwhile, the intent stays, for `Remove` to find them.
        """
        uid = grant.shadow.uid
        if uid in self.live:
            await self._revoke((grant,))
            if await self._look((grant,)):
                log.warning(line("revoked held", **facts(grant)))
                return
            await self._clear((grant,))
        self.drop(grant)

    def drop(self, grant: Grant) -> None:
        """Write that nothing of the grant is left. Raises NodeUnavailable."""
        uid = grant.shadow.uid
        self._journal.append(Removed(uid))
        self.holders.pop(uid, None)
        self.doubtful.discard(uid)
        log.info(line("removed", **facts(grant)))

    # ---- steps

    async def _searching(self, work: Callable[[], tuple[Holder, ...]]) -> tuple[Holder, ...]:
        """Search in threads of its own: a slow one must not delay the end of access elsewhere."""
        return await asyncio.get_running_loop().run_in_executor(self._searchers, work)

    def _check_not_lost(self, grant: Grant) -> None:
        """Raise ReservationLost if the loss was noticed since the attempt began."""
        now = self.ledger.grants.get(grant.shadow.uid)
        if now is not None and now.stage is Stage.LOST:
            raise ReservationLost(f"shadow pod {grant.shadow.name} has lost its devices")

    async def _permit(self, container: Container) -> None:
        """Make what is live in the container what the kernel allows there."""
        await asyncio.to_thread(self._permitting(container))

    async def _permit_and_place(
        self, container: Container, nodes: tuple[DeviceNode, ...]
    ) -> frozenset[str]:
        """The same, and the nodes with it, in one thread; returns the paths that were made."""
        permit = self._permitting(container)

        def both() -> frozenset[str]:
            permit()
            return graft.place(container, nodes)

        return await asyncio.to_thread(both)

    def _permitting(self, container: Container) -> Callable[[], None]:
        """Return what makes the kernel allow what is live in the container at this moment."""
        grants = self.ledger.in_container(container.id)
        want = access_of(grant for grant in grants if grant.shadow.uid in self.live)
        earlier = self.ledger.earlier_in(container.id)
        return partial(graft.permit, container, want, earlier=earlier)

    async def _permit_all(self, grants: Iterable[Grant]) -> None:
        for container in self._running(grants):
            await self._permit(container)

    async def _revoke(self, grants: Collection[Grant]) -> None:
        uids = {grant.shadow.uid for grant in grants}
        self.live -= uids
        self.doubtful |= uids
        await self._permit_all(grants)
        for grant in grants:
            log.info(line("revoked", **facts(grant)))

    async def _look(self, grants: Collection[Grant]) -> bool:
        """Search every process of the node; note and say whether a blocking holder was found."""
        for grant in grants:
            find = partial(
                search.search, frozenset(self._own_numbers(grant, grants)), **self._whose(grant)
            )
            self.holders[grant.shadow.uid] = await self._searching(find)
        return any(h.blocking for grant in grants for h in self.holders[grant.shadow.uid])

    async def _clear(self, grants: Collection[Grant]) -> None:
        """Remove the nodes that we made and nobody else of ours needs."""
        leaving = {grant.shadow.uid for grant in grants}
        for grant in grants:
            container = self._containers.running(grant.container_id)
            if container is None:
                continue
            staying = (
                node.path
                for other in self.ledger.in_container(container.id)
                if other.shadow.uid not in leaving
                for node in other.nodes()
            )
            made = grant.made.difference(staying)
            try:
                await asyncio.to_thread(graft.displace, container, grant.nodes(), made)
            except OSError as error:  # access is gone: who protects a node keeps no device by it
                log.warning(line("left nodes", **facts(grant), error=error))

    def _running(self, grants: Iterable[Grant]) -> tuple[Container, ...]:
        ids = dict.fromkeys(grant.container_id for grant in grants)
        found = (self._containers.running(container_id) for container_id in ids)
        return tuple(container for container in found if container is not None)

    def _own_numbers(self, grant: Grant, leaving: Collection[Grant]) -> set[DeviceNumber]:
        """Return the numbers that no grant which stays gives to the same container."""
        going = {other.shadow.uid for other in leaving}
        stay = (
            other
            for other in self.ledger.grants.values()
            if other.shadow.uid in self.live - going and _same_container(other, grant)
        )
        return set(grant.access()) - set(access_of(stay))

    def _whose(self, grant: Grant) -> "_Whose":
        granted: set[tuple[ContainerID, DeviceNumber]] = {
            (other.container_id, number)
            for other in self.ledger.grants.values()
            if other.shadow.uid in self.live and not _same_container(other, grant)
            for number in other.access()
        }
        return {
            "target": grant.key.pod_uid,
            "shadow": grant.shadow.uid,
            "granted": frozenset(granted),
            "hold": self._hold,
        }

    def _note_lost(self, grant: Grant) -> None:
        try:
            self._journal.append(Lost(grant.shadow.uid))
        except NodeUnavailable as error:  # access must go all the same
            log.error(line("lost unwritten", **facts(grant), error=error))
        log.warning(line("lost", **facts(grant)))


def facts(grant: Grant) -> dict[str, object]:
    """Return what a log line says of a grant."""
    return {
        "mount": grant.mount_name,
        "mount_uid": grant.key.mount_uid,
        "namespace": grant.target.namespace,
        "pod": grant.target.pod_name,
        "shadow": grant.shadow.name,
        "container": grant.container_id[:12],
        "devices": ",".join(f"{d.resource}={d.id}" for d in grant.devices),
    }


class _Whose(TypedDict):
    """Whose processes are looked for."""

    target: PodUID
    shadow: PodUID
    granted: frozenset[tuple[ContainerID, DeviceNumber]]
    hold: Path


def _same_container(one: Grant, other: Grant) -> bool:
    """Tell whether both are of one target container, be it in its former or its current run."""
    return (one.key.pod_uid, one.target.container) == (other.key.pod_uid, other.target.container)
