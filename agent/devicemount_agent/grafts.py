# SPDX-License-Identifier: Apache-2.0
"""Carries grants into the kernel, each step with its record in the journal; the way out has a
module of its own.

The kernel is always told the whole of what a container may do by us (several mounts share a
container, and numbers), so every change is: change what is live, then permit exactly that. Callers
hold the lock of the target pod; not for `intend_unlocked`, nor to end access, which waits for
nobody and needs no descriptor of the container. Blocking work runs in threads, on snapshots.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from devicemount_agent import withheld
from devicemount_agent.changes import Changes
from devicemount_agent.container.cgroup import cgroups_of
from devicemount_agent.container.find import Container
from devicemount_agent.container.known import KnownContainers
from devicemount_agent.errors import (
    FilterBlocked,
    NodeUnavailable,
    PathConflict,
    ReservationLost,
    UnsupportedRuntime,
)
from devicemount_agent.graft import edits, graft, verify
from devicemount_agent.graft.files import Files
from devicemount_agent.graft.sources import Sources
from devicemount_agent.graft.standing import Standing
from devicemount_agent.history import History
from devicemount_agent.holders.known import KnownHolders
from devicemount_agent.journal import Journal
from devicemount_agent.ledger import (
    Committed,
    Earlier,
    Grant,
    Granted,
    Ledger,
    Removed,
    Stage,
    access_of,
)
from devicemount_agent.logs import line
from devicemount_agent.model import (
    Access,
    Bound,
    Concern,
    ContainerID,
    DeviceNode,
    DeviceNumber,
    PodUID,
)
from devicemount_agent.planning import Planned, intent_of
from devicemount_agent.requests import MountKey
from devicemount_agent.shown import Shown
from devicemount_agent.survey import numbers_on_node, survey
from devicemount_agent.timeline import Timeline
from devicemount_agent_api.failpoints import Failpoint, fire

PERMITTERS = 4

_Permitted = Mapping[DeviceNumber, Access]
_Written = TypeVar("_Written")

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
    ) -> None:
        self._journal = journal
        self._containers = containers
        self._hold = hold
        self._sources = sources
        self._files = files
        self._permitters = ThreadPoolExecutor(PERMITTERS, thread_name_prefix="permit")
        self._locks: WeakValueDictionary[PodUID, asyncio.Lock] = WeakValueDictionary()
        self._turns: WeakValueDictionary[ContainerID, threading.Lock] = WeakValueDictionary()
        self.live: set[PodUID] = set()  # shadow pods whose devices the kernel is to allow
        self.lost: set[PodUID] = set()  # those whose devices it is never to allow again
        self.doubtful: set[PodUID] = set()  # whatever the journal says, not known to be usable now
        self.changes = Changes()
        self.holders = KnownHolders(self._note_holders)
        self.standing: dict[ContainerID, Standing] = {}  # as our last write left it
        self.blocked: dict[PodUID, Concern] = {}  # why access that was taken is not given again
        self.history = History()
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
        await self._leave(grant.shadow.uid, container)
        await asyncio.to_thread(container.follow, graft.supported)
        with self.shown.needed_in(container.id):
            return self._intended(grant, container, await self._planned(grant, container))

    async def intend_unlocked(self, grant: Grant, container: Container) -> Grant:
        """The same without the pod's lock, which only a refusal waits for.

        What is in the way may be another grant that comes or goes while we look. Under the lock
        none does, so that what is refused there is refused.
        """
        await self._leave(grant.shadow.uid, container)
        with self.shown.needed_in(container.id):
            with suppress(PathConflict, UnsupportedRuntime):
                planned = await self._planned(grant, container)
                if not planned.edits.unshown:
                    return self._intended(grant, container, planned)
            async with self.lock(container.pod_uid):
                return await self.intend(grant, container)

    def _intended(self, grant: Grant, container: Container, planned: Planned) -> Grant:
        """Write the intent. Between the look and this nothing waits: what others of ours have in
        the container must not be taken for the container's own.
        """
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

    async def _leave(self, uid: PodUID, container: Container) -> None:
        """Take a grant away from a container that has ended before it moves on to the next one.

        Nobody would look there any more.
        """
        former = self.ledger.grants.get(uid)
        if former is not None and former.container_id != container.id:
            await self._permit_left(former.key.pod_uid, former.container_id, without=uid)

    async def _planned(self, grant: Grant, container: Container) -> Planned:
        """Look at the container, once more where another grant of ours left it meanwhile."""
        former = self.ledger.grants.get(grant.shadow.uid)
        is_here = former is not None and former.container_id == container.id
        placed = former.bound if former is not None and is_here else frozenset()
        sources, files = self._sources, self._files
        while True:
            others = {other.shadow.uid for other in self.ledger.in_container(container.id)}
            seen = await asyncio.to_thread(
                survey, grant, container, placed=placed, sources=sources, files=files
            )
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
        except FilterBlocked:
            self._check_not_lost(grant)  # else a loss has just taken what was verified
            raise
        except OSError as error:
            container.check()
            raise NodeUnavailable(f"container {container.id[:12]}: {error}") from error
        timeline.mark("verified")
        return replace(grant, made=grant.made | made, bound=bound)

    def commit(self, grant: Grant, timeline: Timeline) -> None:
        """Write that the grant stands. Raises NodeUnavailable, ReservationLost."""
        fire(Failpoint.AGENT_BEFORE_COMMIT)
        self._check_not_lost(grant)
        uid = grant.shadow.uid
        self._journal.append(Committed(uid, grant.made, time.time_ns(), grant.bound))
        self.doubtful.discard(uid)
        self.blocked.pop(uid, None)
        self.holders.forget(uid)
        self.shown.update_all((grant,))
        timeline.mark("committed")
        self.changes.note(grant.key)
        took_ms = timeline.steps_us["committed"] / 1000
        log.info(line("granted", **facts(grant), took_ms=f"{took_ms:.1f}"))

    def complete(self, key: MountKey) -> None:
        """Take note that all that was asked for is granted: the ready file says so."""
        self.shown.note_complete(key)
        self.shown.update_all(self.ledger.of_mount(key))
        self.changes.note(key)

    # ---- out

    async def revoke(self, grants: Collection[Grant]) -> None:
        """Take access away. What has the devices open keeps them open. Idempotent."""
        uids = {grant.shadow.uid for grant in grants}
        former = self.live & uids
        self.live -= uids
        self.doubtful |= uids
        for uid in uids:
            self.blocked.pop(uid, None)
        self.shown.update_all(grants)
        await self._permit_all(grants)
        for grant in grants:
            if grant.shadow.uid in former:
                self.changes.note(grant.key)
                log.info(line("revoked", **facts(grant)))

    async def permit_again(self, grants: Collection[Grant], revoked: Collection[PodUID]) -> None:
        """Give back the access that was just taken, as it was; not of what was lost meanwhile."""
        self.live |= set(revoked) - self.lost
        await self._permit_all(grants)
        self.doubtful -= set(revoked) & self.live
        self.shown.update_all(grants)
        for grant in grants:
            self.changes.note(grant.key)

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
            await self.revoke((grant,))
            raise
        self.shown.update_all((held,))
        for container in self.running((held,)):
            await self._permit(container)
            sets, bound = (self._only_of(begun, grant), grant.nodes()), begun.bound | grant.bound
            clear = partial(withheld.displace, container, paths & held.made, sets=sets, bound=bound)
            if left := await asyncio.to_thread(clear):
                log.warning(line("left in container", **facts(held), error=left))
        self.changes.note(grant.key)
        log.warning(line("withheld", **facts(held), paths=",".join(sorted(paths))))
        return held

    async def on_node(
        self, grants: Collection[Grant]
    ) -> Mapping[PodUID, Mapping[str, DeviceNumber | None]]:
        """Return what the node has now in place of the device files that it had."""
        return await asyncio.to_thread(numbers_on_node, grants, self._sources.node_root)

    def drop(self, grant: Grant) -> None:
        """Write that nothing of the grant is left. Raises NodeUnavailable."""
        uid = grant.shadow.uid
        self._journal.append(Removed(uid))
        self.holders.forget(uid)
        self.doubtful.discard(uid)
        self.blocked.pop(uid, None)
        if not self.ledger.of_mount(grant.key):
            self.shown.note_incomplete(grant.key)
        self.shown.update_all((grant,))
        self.shown.forget(grant.container_id)
        self.lost.discard(uid)
        self.history.forget(uid)
        self.changes.note(grant.key)
        log.info(line("removed", **facts(grant)))

    def restore(self, former: Grant) -> None:
        """Write that a grant is what it was, in a container that has ended. Raises NodeUnavailable.

        Nothing of it is left in the one in which it was begun anew.
        """
        uid = former.shadow.uid
        begun = self.ledger.grants.get(uid, former)
        self._journal.append(Granted(former))
        self.live.add(uid)
        self.doubtful.discard(uid)
        self.blocked.pop(uid, None)
        self.shown.forget(begun.container_id)
        self.changes.note(former.key)

    def running(self, grants: Iterable[Grant]) -> tuple[Container, ...]:
        """Return the containers of grants that run still."""
        ids = dict.fromkeys(grant.container_id for grant in grants)
        found = (self._containers.running(container_id) for container_id in ids)
        return tuple(container for container in found if container is not None)

    # ---- what others do to it

    async def repair(self, container: Container) -> bool:
        """Give back what is live and somebody took; say whether there was anything to do.

        The caller holds the pod's lock. Raises FilterBlocked, TargetNotRunning, OSError.
        """
        container.check()
        fire(Failpoint.AGENT_BEFORE_REPAIR)
        standing = await self._permit(container)
        fire(Failpoint.AGENT_AFTER_REPAIR)
        return standing is not None and standing.was_made

    async def check_access(self, container: Container) -> None:
        """Check from inside that what is live may be used. Raises as verify.verify_access does."""
        want = self._wanted(container.id)
        await asyncio.to_thread(verify.verify_access, container, want, hold=self._hold)

    def concerns(self, grant: Grant) -> tuple[Concern, ...]:
        """Return why the grant's devices cannot be used, where that is known."""
        why = self.blocked.get(grant.shadow.uid)
        return () if why is None else (why,)

    def note_blocked(self, grants: Collection[Grant], why: Concern) -> None:
        """Take note that granted devices cannot be used, and why."""
        for grant in grants:
            self.blocked[grant.shadow.uid] = why
            self.doubtful.add(grant.shadow.uid)
            self.changes.note(grant.key)
        self.shown.update_all(grants)

    def note_usable(self, grants: Collection[Grant]) -> None:
        """Take note that what kept granted devices from being used is over."""
        freed = [grant for grant in grants if self.blocked.pop(grant.shadow.uid, None)]
        for grant in freed:
            self.doubtful.discard(grant.shadow.uid)
            self.changes.note(grant.key)
        self.shown.update_all(freed)

    # ---- steps

    def _note_holders(self, shadow_uid: PodUID) -> None:
        if (grant := self.ledger.grants.get(shadow_uid)) is not None:
            self.changes.note(grant.key)

    def _check_not_lost(self, grant: Grant) -> None:
        """Raise ReservationLost if the loss was noticed since the attempt began."""
        if grant.shadow.uid in self.lost or grant.shadow.uid in self.ledger.spent:
            raise ReservationLost(f"shadow pod {grant.shadow.name} has lost its devices")

    async def _permit(self, container: Container) -> Standing | None:
        """Make what is live in the container what the kernel allows there.

        In threads of its own: that access ends must not wait for what is placed elsewhere.
        """
        permit = self._permitting(container)
        return await asyncio.get_running_loop().run_in_executor(self._permitters, permit)

    async def _permit_and_place(self, container: Container, grant: Grant) -> frozenset[str]:
        """The same, and what is placed with it, in one thread; returns the paths of new nodes."""
        permit = self._permitting(container)

        def both() -> frozenset[str]:
            container.follow(graft.supported)
            permit()
            made = graft.place(container, grant.made_nodes(), root=self._sources.node_root)
            edits.place(container, grant.present_bound(), grant.linked, sources=self._sources)
            return made

        return await asyncio.to_thread(both)

    def _verified(self, container: Container, grant: Grant) -> frozenset[Bound]:
        """Check that all of a grant is there and may be used; return its mounts as found."""
        verify.verify(container, grant.present(), hold=self._hold)
        return edits.verified(container, grant.present_bound(), grant.linked)

    def _permitting(self, container: Container) -> Callable[[], Standing | None]:
        """Return what makes the kernel allow what is live in the container when it is called.

        How permissions stand then is noted, even where nobody waits for the thread any more.
        """

        def write(want: _Permitted, earlier: _Permitted) -> Standing | None:
            self.standing.pop(container.id, None)
            standing = graft.permit(container, want, earlier=earlier)
            if standing is not None:
                self.standing[container.id] = standing
            return standing

        return self._in_turn(container.id, write)

    def _in_turn(
        self,
        container_id: ContainerID,
        write: Callable[[_Permitted, _Permitted], _Written],
        *,
        without: PodUID | None = None,
    ) -> Callable[[], _Written]:
        """Return what writes what a container is to be allowed, and was before us, when it is
        called: one at a time, so that what was live before a loss is never told after it."""
        turn = self._turns.setdefault(container_id, threading.Lock())

        def written() -> _Written:
            with turn:
                want = self._wanted(container_id, without=without)
                return write(want, self.ledger.earlier_in(container_id))

        return written

    def _wanted(self, container_id: ContainerID, *, without: PodUID | None = None) -> _Permitted:
        """Return what is live in the container, nothing of a grant that is lost."""
        live = self.live - self.lost - {without}
        return access_of(
            grant
            for grant in self.ledger.in_container(container_id)
            if grant.shadow.uid in live and grant.stage is not Stage.LOST
        )

    async def _permit_all(self, grants: Collection[Grant]) -> None:
        """Do so in all containers of these grants, in those that have ended too.

        Of such a one processes may be left, whatever the runtime says.
        """
        running = self.running(grants)
        for container in running:
            await self._permit(container)
        ended = {(g.key.pod_uid, g.container_id) for g in grants} - {
            (container.pod_uid, container.id) for container in running
        }
        for pod_uid, container_id in ended:
            await self._permit_left(pod_uid, container_id)

    async def _permit_left(
        self, pod_uid: PodUID, container_id: ContainerID, *, without: PodUID | None = None
    ) -> None:
        """The same for a container that has ended."""

        def write(want: _Permitted, earlier: _Permitted) -> None:
            for cgroup in cgroups_of(pod_uid, container_id):
                graft.permit_left(cgroup, want, earlier=earlier)

        permit = self._in_turn(container_id, write, without=without)
        await asyncio.get_running_loop().run_in_executor(self._permitters, permit)

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
