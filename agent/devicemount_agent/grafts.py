# SPDX-License-Identifier: Apache-2.0
"""Carries grants into the kernel and out again, each step with its record in the journal.

The kernel is always told the whole of what a container may do by us (several mounts share a
container, and numbers), so every change is: change what is live, then permit exactly that. Callers
hold the lock of the target pod. Blocking work runs in threads, on snapshots taken before.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict
from weakref import WeakValueDictionary

from devicemount_agent.container.find import Container
from devicemount_agent.container.known import KnownContainers
from devicemount_agent.errors import DeviceMountError, NodeUnavailable, ReservationLost
from devicemount_agent.graft import edits, graft, verify
from devicemount_agent.graft.files import Files
from devicemount_agent.graft.sources import Sources
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
from devicemount_agent.model import Bound, ContainerID, DeviceNode, DeviceNumber, Holder, PodUID
from devicemount_agent.planning import Planned, intent_of
from devicemount_agent.requests import MountKey
from devicemount_agent.shown import Shown
from devicemount_agent.timeline import Timeline
from devicemount_agent_api.failpoints import Failpoint, fire

SEARCHERS = 2
PERMITTERS = 4

log = logging.getLogger(__name__)


class Grafts:
    """All grants of the node, as the journal has them and as the kernel has them."""

    def __init__(
        self,
        journal: Journal,
        containers: KnownContainers,
        *,
        hold: Path,
        sources: Sources,
        files: Files,
        users: search.Users = search.nobody,
    ) -> None:
        self._journal = journal
        self._containers = containers
        self._hold = hold
        self._sources = sources
        self._files = files
        self._users = users
        self._searchers = ThreadPoolExecutor(SEARCHERS, thread_name_prefix="search")
        self._permitters = ThreadPoolExecutor(PERMITTERS, thread_name_prefix="permit")
        self._locks: WeakValueDictionary[PodUID, asyncio.Lock] = WeakValueDictionary()
        self.live: set[PodUID] = set()  # shadow pods whose devices the kernel is to allow
        self.doubtful: set[PodUID] = set()  # whatever the journal says, not known to be usable now
        self.holders: dict[PodUID, tuple[Holder, ...]] = {}  # that keep a shadow pod's devices
        self.shown = Shown(
            files, ledger=lambda: self.ledger, live=self.live, doubtful=self.doubtful
        )

    @property
    def ledger(self) -> Ledger:
        return self._journal.ledger

    def lock(self, pod_uid: PodUID) -> asyncio.Lock:
        """Return the one lock of a target pod: whoever changes a grant of it holds it."""
        return self._locks.setdefault(pod_uid, asyncio.Lock())

    # ---- in

    def begin(self, key: MountKey) -> None:
        """Take note that something that was asked for is not granted: the ready file goes."""
        self.shown.note_incomplete(key)
        self.shown.update_all(self.ledger.of_mount(key))

    async def intend(self, grant: Grant, container: Container) -> Grant:
        """Write the intent, with what cgroup v1 allowed before us, and what will be made.

        Raises NodeUnavailable, ReservationLost, and for what must not be placed NotAllowed,
        PathConflict, UnsupportedRuntime.
        """
        with self.shown.needed_in(container.id):
            planned = await self._planned(grant, container)
            # From here on nothing waits: what others of ours have in the container must not be
            # taken for the container's own.
            self._check_not_lost(grant)
        numbers = grant.access().keys()
        before = self.ledger.earlier_in(container.id)
        fresh = frozenset(numbers - before.keys())
        before |= graft.earlier(container, fresh)
        earlier = tuple(Earlier(n, before[n]) for n in sorted(numbers) if n in before)
        intent = intent_of(grant, planned, self.ledger, container.id, earlier)
        former = self.ledger.grants.get(grant.shadow.uid)
        self._journal.append(Granted(intent))
        if former is not None and former.container_id != container.id:
            self.shown.forget(former.container_id)
        if planned.edits.unshown:
            log.warning(line("left out ready file", **facts(grant), reason=planned.edits.unshown))
        return intent

    async def _planned(self, grant: Grant, container: Container) -> Planned:
        """Look at the container, once more where another grant of ours left it meanwhile."""
        former = self.ledger.grants.get(grant.shadow.uid)
        placed: frozenset[Bound] = frozenset()
        if former is not None and former.container_id == container.id:
            placed = former.bound

        def look() -> Planned:
            root, nodes = self._sources.node_root, grant.present()
            return Planned(
                kept=edits.remaining(container, placed),
                edits=edits.plan(
                    container, grant.edits(), sources=self._sources, files=self._files
                ),
                nodes=graft.missing(container, nodes),
                hosted=frozenset(
                    n.path for n in nodes if graft.number_on_node(n.host_path, root) == n.number
                ),
            )

        while True:
            others = {other.shadow.uid for other in self.ledger.in_container(container.id)}
            seen = await asyncio.to_thread(look)
            if others <= {other.shadow.uid for other in self.ledger.in_container(container.id)}:
                return seen

    async def bring_in(self, grant: Grant, container: Container, timeline: Timeline) -> Grant:
        """Permit, place, verify. Idempotent. Raises DeviceMountError."""
        container.check()
        self._check_not_lost(grant)
        self.live.add(grant.shadow.uid)
        try:
            made = await self._permit_and_place(container, grant)
            self.shown.update(container.id)
            timeline.mark("granted")
            fire(Failpoint.AGENT_AFTER_GRANT)
            bound = await asyncio.to_thread(self._verified, container, grant)
        except OSError as error:
            container.check()
            raise NodeUnavailable(f"container {container.id[:12]}: {error}") from error
        timeline.mark("verified")
        return replace(grant, made=grant.made | made, bound=bound)

    def commit(self, grant: Grant, timeline: Timeline) -> None:
        """Write that the grant stands. Raises NodeUnavailable."""
        fire(Failpoint.AGENT_BEFORE_COMMIT)
        uid = grant.shadow.uid
        self._journal.append(Committed(uid, grant.made, time.time_ns(), grant.bound))
        self.doubtful.discard(uid)
        self.holders.pop(uid, None)
        self.shown.update_all((grant,))
        timeline.mark("committed")
        took_ms = timeline.steps_us["committed"] / 1000
        log.info(line("granted", **facts(grant), took_ms=f"{took_ms:.1f}"))

    def complete(self, key: MountKey) -> None:
        """Take note that all that was asked for is granted: the ready file says so."""
        self.shown.note_complete(key)
        self.shown.update_all(self.ledger.of_mount(key))

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
            self.shown.update_all(grants)
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
            self.shown.note_incomplete(grant.key)
        await self._revoke(grants)
        for grant in grants:
            kill = partial(
                end.kill, frozenset(self._own_numbers(grant, grants)), **self._whose(grant)
            )
            self.holders[grant.shadow.uid] = await self._searching(kill)
        await self._clear(grants)
        return not any(self.holders[grant.shadow.uid] for grant in grants)

    async def withhold(self, grant: Grant, paths: frozenset[str]) -> Grant:
        """Take access to devices that are not there (any more), and their files; keep the grant.

        Also undoes what was begun to give it again. Where the journal cannot be written, all of the
        grant's access goes. Raises NodeUnavailable, OSError.
        """
        begun = self.ledger.grants.get(grant.shadow.uid, grant)
        earlier = {e.number: e for e in (*begun.earlier, *grant.earlier)}
        held = replace(
            grant,
            withheld=paths,
            earlier=tuple(earlier[number] for number in sorted(earlier)),
            stage=Stage.COMMITTED,
        )
        try:
            self._journal.append(Granted(held))
        except NodeUnavailable:
            await self._revoke((grant,))
            raise
        self.shown.update_all((held,))
        for container in self._running((held,)):
            await self._permit(container)
            for nodes in (self._only_of(begun, grant), grant.nodes()):
                gone = paths & held.made & {node.path for node in nodes}
                await asyncio.to_thread(graft.displace, container, nodes, gone)
        log.warning(line("withheld", **facts(held), paths=",".join(sorted(paths))))
        return held

    async def on_node(
        self, grants: Collection[Grant]
    ) -> Mapping[PodUID, Mapping[str, DeviceNumber | None]]:
        """Return what the node has now in place of the device files that it had, by their paths in
        the container."""
        root = self._sources.node_root

        def look() -> Mapping[PodUID, Mapping[str, DeviceNumber | None]]:
            return {
                grant.shadow.uid: {
                    node.path: graft.number_on_node(node.host_path, root)
                    for node in grant.nodes()
                    if node.path in grant.hosted
                }
                for grant in grants
            }

        return await asyncio.to_thread(look)

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
        if not self.ledger.of_mount(grant.key):
            self.shown.note_incomplete(grant.key)
        self.shown.update_all((grant,))
        self.shown.forget(grant.container_id)
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
        """Make what is live in the container what the kernel allows there.

        In threads of its own: that access ends must not wait for what is placed elsewhere.
        """
        permit = self._permitting(container)
        await asyncio.get_running_loop().run_in_executor(self._permitters, permit)

    async def _permit_and_place(self, container: Container, grant: Grant) -> frozenset[str]:
        """The same, and what is placed with it, in one thread; returns the paths of new nodes."""
        permit = self._permitting(container)

        def both() -> frozenset[str]:
            permit()
            made = graft.place(container, grant.present(), root=self._sources.node_root)
            edits.place(container, grant.bound, grant.linked, sources=self._sources)
            return made

        return await asyncio.to_thread(both)

    def _verified(self, container: Container, grant: Grant) -> frozenset[Bound]:
        """Check that all of a grant is there and may be used; return its mounts as found."""
        verify.verify(container, grant.present(), hold=self._hold)
        return edits.verified(container, grant.bound, grant.linked)

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
        self.shown.update_all(grants)
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
        """Remove what we made and nobody else of ours needs."""
        leaving = {grant.shadow.uid for grant in grants}
        for grant in grants:
            container = self._containers.running(grant.container_id)
            if container is None:
                continue
            staying = tuple(
                other
                for other in self.ledger.in_container(container.id)
                if other.shadow.uid not in leaving
            )
            try:
                await asyncio.to_thread(_displace, container, grant, staying)
            except (OSError, DeviceMountError) as error:
                # Access is gone: who protects a node or a mount keeps no device by it.
                log.warning(line("left in container", **facts(grant), error=error))

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
        return grant.numbers() - set(access_of(stay))

    def _only_of(self, begun: Grant, former: Grant) -> tuple[DeviceNode, ...]:
        """Return the nodes that were begun anew and that no other grant has there by now."""
        others = self.ledger.in_container(begun.container_id)
        kept = {
            (node.path, node.number)
            for other in others
            if other.shadow.uid != begun.shadow.uid
            for node in other.present()
        }
        fresh = (node for node in begun.nodes() if node not in former.nodes())
        return tuple(node for node in fresh if (node.path, node.number) not in kept)

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
            "users": self._users,
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
    users: search.Users


def _displace(container: Container, grant: Grant, staying: Collection[Grant]) -> None:
    """Remove what only this grant needs: links, mounts, their mount points, nodes."""
    bound = {b.place for other in staying for b in other.bound}
    linked = {link for other in staying for link in other.linked}
    nodes = {node.path for other in staying for node in other.nodes()}
    points = {b.path for other in staying for b in other.bound}
    made = grant.made - points - nodes
    graft_nodes = {node.path for node in grant.nodes()}
    try:
        edits.displace(
            container,
            [b for b in grant.bound if b.place not in bound],
            [link for link in grant.linked if link not in linked],
            made - graft_nodes,
        )
    finally:
        graft.displace(
            container, grant.nodes(), frozenset(p for p in made if p.startswith("/dev/"))
        )


def _same_container(one: Grant, other: Grant) -> bool:
    """Tell whether both are of one target container, be it in its former or its current run."""
    return (one.key.pod_uid, one.target.container) == (other.key.pod_uid, other.target.container)
