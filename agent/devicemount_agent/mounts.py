# SPDX-License-Identifier: Apache-2.0
"""One mount's life: find the container and the kubelet's choice, intend, prove, grant, confirm,
commit; and back.

An `Apply` waits (for the kubelet, for its turn) until it has the target pod's lock; while it waits,
a `Remove` or a later `Apply` ends it and nothing has to be undone but the intent. From the lock on
it runs to its end, whoever goes away.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from devicemount_agent.allocation.read import Allocation, Choice
from devicemount_agent.allocation.said import Ask
from devicemount_agent.attempt import Attempt
from devicemount_agent.container.cri import Runtime
from devicemount_agent.container.find import Container
from devicemount_agent.container.known import KnownContainers
from devicemount_agent.container.main_processes import main_processes
from devicemount_agent.errors import (
    NodeUnavailable,
    NotAllowed,
    ReservationLost,
    StaleRequest,
    StillReserved,
)
from devicemount_agent.graft import graft
from devicemount_agent.grafts import Grafts
from devicemount_agent.journal import Journal
from devicemount_agent.ledger import Grant, Guarded, Ledger, Seen, Stage
from devicemount_agent.losses import Losses, reservation_lost
from devicemount_agent.model import PodUID, ResourceName
from devicemount_agent.requests import (
    ApplyRequest,
    MountKey,
    Order,
    Policy,
    RemoveRequest,
    ShadowPod,
)
from devicemount_agent.shadow import ShadowPods
from devicemount_agent.state import MountState, Phase, ShadowState
from devicemount_agent.usability import Usability
from devicemount_agent.withdrawal import Withdrawal
from devicemount_agent_api.failpoints import Failpoint, fire

log = logging.getLogger(__name__)

_Said = TypeVar("_Said")
_Found = TypeVar("_Found")


class Mounts:
    """All mounts of this node."""

    def __init__(
        self,
        *,
        journal: Journal,
        grafts: Grafts,
        withdrawal: Withdrawal,
        losses: Losses,
        containers: KnownContainers,
        allocation: Allocation,
        shadow_pods: ShadowPods,
        runtime: Runtime,
        usability: Usability,
    ) -> None:
        self._journal = journal
        self._grafts = grafts
        self._withdrawal = withdrawal
        self._losses = losses
        self._containers = containers
        self._allocation = allocation
        self._shadow_pods = shadow_pods
        self._runtime = runtime
        self._usability = usability
        self.changes = grafts.changes
        self._attempts: dict[MountKey, Attempt] = {}
        self._timings: dict[MountKey, Mapping[str, int]] = {}
        self._removals: set[asyncio.Task[MountState]] = set()

    # ---- what the contract asks

    async def apply(self, request: ApplyRequest, *, deadline: float) -> MountState:
        """Grant what the request names; WAITING if the kubelet has not chosen by the deadline.

        The deadline is in loop time.
        """
        self._accept(request.key, request.order)
        attempt = await self._begin(request, deadline)
        try:
            return await asyncio.shield(attempt.task)
        except asyncio.CancelledError:
            if attempt.task.cancelled():
                raise StaleRequest("a later request of this mount ended this one") from None
            attempt.give_up()
            raise

    async def remove(self, request: RemoveRequest) -> MountState:
        """Take back what the request names, to the end even if the caller goes away."""
        self._accept(request.key, request.order)
        removal = asyncio.create_task(self._remove(request))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        removal.add_done_callback(_seen)
        return await asyncio.shield(removal)

    def states(self) -> tuple[MountState, ...]:
        """Return every mount that has a grant or waits for one."""
        granted = (grant.key for grant in self._grafts.ledger.grants.values())
        keys = dict.fromkeys((*granted, *self._attempts))
        return tuple(self.state(key) for key in keys)

    @property
    def ledger(self) -> Ledger:
        return self._grafts.ledger

    async def finish(self) -> None:
        """End what waits, and wait for what has begun, so that nothing is torn at the end."""
        for attempt in tuple(self._attempts.values()):
            await attempt.ended()
        if self._removals:
            await asyncio.wait(self._removals)

    async def forget_ended(self, container: Container) -> None:
        """Let go of a container that has ended."""
        async with self._grafts.lock(container.pod_uid):
            self._keep_containers(container.pod_uid)
        for grant in self.ledger.in_container(container.id):
            self.changes.note(grant.key)

    # ---- order

    def _accept(self, key: MountKey, order: Order) -> None:
        if self._grafts.ledger.is_outdated(key, order):
            raise StaleRequest(f"{order} of mount {key} is not the latest")
        self._journal.note(Seen(key, order, time.clock_gettime_ns(time.CLOCK_BOOTTIME)))

    async def _begin(self, request: ApplyRequest, deadline: float) -> Attempt:
        """Start the attempt when the former one of this mount has ended."""
        while (former := self._attempts.get(request.key)) is not None:
            await former.ended()
            if self._grafts.ledger.is_outdated(request.key, request.order):
                raise StaleRequest(f"{request.order} of mount {request.key} is not the latest")
        attempt = Attempt(request, deadline=deadline, attach=self._attach)
        self._attempts[request.key] = attempt
        attempt.task.add_done_callback(lambda _: self._attempts.pop(request.key))
        attempt.task.add_done_callback(_seen)
        return attempt

    # ---- in

    async def _attach(self, attempt: Attempt) -> MountState:
        request = attempt.request
        attempt.acts()  # a loss that has begun is carried out: its threads do not stop with us
        await self._settle_omitted(request)
        attempt.waits()
        grafted: list[PodUID] = []
        try:
            for shadow, asked in request.shadow_pods.items():
                if not await self._is_granted(request.key, shadow):
                    await self._graft(attempt, shadow, asked)
                    grafted.append(shadow.uid)
        except TimeoutError:
            return self.state(request.key)
        async with self._grafts.lock(request.key.pod_uid):
            self._keep_containers(request.key.pod_uid)
            await self._usability.look([g for uid in grafted if (g := self.ledger.grants.get(uid))])
            if self.state(request.key).phase is Phase.GRANTED:
                self._grafts.complete(request.key)
        return self.state(request.key)

    async def _is_granted(self, key: MountKey, shadow: ShadowPod) -> bool:
        """Tell whether nothing is to be done. Waits for who changes a grant of the pod just now."""
        async with self._grafts.lock(key.pod_uid):
            grant = self._grafts.ledger.grants.get(shadow.uid)
            if grant is None:
                return False
            if grant.key != key:
                raise NotAllowed(f"shadow pod {shadow.name} is another mount's")
            if grant.stage is Stage.LOST or self._losses.has_begun(shadow.uid):
                raise ReservationLost(f"shadow pod {shadow.name} has lost its devices")
            self._withdrawal.keep(grant)
            return self._phase(grant) is Phase.GRANTED

    async def _graft(
        self, attempt: Attempt, shadow: ShadowPod, asked: Mapping[ResourceName, int]
    ) -> None:
        """Come to the intent while List is asked for the proof; then grant, or undo the intent."""
        request, timeline = attempt.request, attempt.timeline
        self._grafts.begin(request.key)
        attempt.waits()
        await self._guarded(attempt, shadow)
        async with asyncio.timeout_at(attempt.deadline):
            container, choice = await _both(
                self._find(attempt), self._choice(attempt, shadow, asked)
            )
            ask = Ask(shadow, request.target.namespace, request.accept_env_file)
            devices = await self._allocation.read(choice, ask)
        if shadow.uid in self.ledger.grants and await self._is_granted(request.key, shadow):
            return  # to its restarted container, by ourselves
        proof = asyncio.create_task(
            self._allocation.proven(
                shadow, request.target.namespace, choice, deadline=attempt.deadline
            )
        )
        proof.add_done_callback(_seen)
        try:
            grant = Grant(
                key=request.key,
                mount_name=request.mount_name,
                shadow=shadow,
                target=request.target,
                container_id=container.id,
                devices=devices,
            )
            grant = await self._grafts.intend_unlocked(grant, container)
            timeline.mark("intent")
            fire(Failpoint.AGENT_AFTER_INTENT)
            await self._carry_out(attempt, grant, container, proof)
        finally:
            proof.cancel()
        self._timings[request.key] = timeline.steps_us

    async def _guarded(self, attempt: Attempt, shadow: ShadowPod) -> None:
        """Wait for the fence where the mount lost its last grant for want of one."""
        key = attempt.request.key
        if key not in self.ledger.unguarded:
            return
        async with asyncio.timeout_at(attempt.deadline):
            await self._shadow_pods.await_fence(shadow.uid, key.mount_uid)
        self._journal.append(Guarded(key))

    async def _carry_out(
        self, attempt: Attempt, grant: Grant, container: Container, proof: asyncio.Task[None]
    ) -> None:
        """From the intent to the commit; what fails leaves nothing of the grant behind."""
        pod_lock = self._grafts.lock(grant.key.pod_uid)
        try:
            async with asyncio.timeout_at(attempt.deadline):
                await proof
                await self._losses.freed(grant)
            attempt.timeline.mark("proven")
            async with pod_lock:
                attempt.acts()
                grant = await self._grafts.bring_in(grant, container, attempt.timeline)
            await self.confirm(grant)
            self._grafts.commit(grant, attempt.timeline)
        except ReservationLost:
            await self._lose_for_good(grant)
            raise
        except BaseException:  # whatever it was: nothing half done stays
            attempt.acts()
            async with pod_lock:
                await self._withdrawal.undo(grant)
            raise

    async def _find(self, attempt: Attempt) -> Container:
        request = attempt.request
        container = await self._containers.find(
            request.target, pod_uid=request.key.pod_uid, hint=request.container_hint
        )
        attempt.container_id = container.id  # from here on it is kept open for the threads below
        await asyncio.to_thread(container.examine, graft.supported)
        attempt.timeline.mark("target")
        return container

    async def _choice(
        self, attempt: Attempt, shadow: ShadowPod, asked: Mapping[ResourceName, int]
    ) -> Choice:
        choice = await self._allocation.chosen(shadow.uid, asked)
        attempt.timeline.mark("chosen")
        return choice

    async def confirm(self, grant: Grant) -> None:
        """Raise ReservationLost unless the devices are the shadow pod's still."""
        namespace = grant.target.namespace
        holds, _ = await asyncio.gather(
            self._allocation.holds(grant.shadow, namespace, grant.ids()),
            self._shadow_pods.check(grant.shadow, namespace, grant.key.mount_uid),
        )
        if not holds:
            raise ReservationLost(f"the devices are no longer those of {grant.shadow.name}")

    async def _settle_omitted(self, request: ApplyRequest) -> None:
        """Handle the grants that the request omits: lost with their shadow pods, or a mistake.

        Raises StillReserved when such a shadow pod lives.
        """
        named = {shadow.uid for shadow in request.shadow_pods}
        for grant in self._grafts.ledger.of_mount(request.key):
            if grant.shadow.uid in named:
                continue
            if grant.stage is not Stage.LOST and await self._is_reserved(grant):
                raise StillReserved(f"shadow pod {grant.shadow.name} lives: remove it first")
            await self._lose_for_good(grant)

    async def _is_reserved(self, grant: Grant) -> bool:
        is_staying = await self._shadow_pods.is_staying(grant.shadow.uid, grant.key.mount_uid)
        if is_staying is not None:
            return is_staying
        return await self._allocation.still_holds(grant.shadow, grant.target.namespace, grant.ids())

    # ---- out

    async def _remove(self, request: RemoveRequest) -> MountState:
        key = request.key
        attempt = self._attempts.get(key)
        if attempt is not None and any(map(request.concerns, attempt.request.shadow_pods)):
            await attempt.ended()
        if request.policy is Policy.LOST:
            await self._lose_all(request)
        async with self._grafts.lock(key.pod_uid):
            mains = await self._main_processes(request)  # of now: one may just have been restarted
            grants = tuple(
                grant
                for grant in self._grafts.ledger.of_mount(key)
                if request.concerns(grant.shadow)
            )
            if not grants:
                await self._check_unknown(key)
            gone = await self._taken_back(request, grants, mains=mains)
            for grant in grants if gone else ():
                self._drop(grant)
            if not self._grafts.ledger.of_mount(key):
                self._timings.pop(key, None)
            elif gone:
                self._note_rest(request, grants)
            self._keep_containers(key.pod_uid)
        if request.policy is Policy.LOST and gone:
            for uid in request.shadow_uids | {grant.shadow.uid for grant in grants}:
                await self._shadow_pods.lower_fence(uid, key.mount_uid)
        return self.state(key, removed=_gone(request, grants) if gone else ())

    async def _taken_back(
        self, request: RemoveRequest, grants: tuple[Grant, ...], *, mains: frozenset[int]
    ) -> bool:
        lost = [grant for grant in grants if self._losses.has_begun(grant.shadow.uid)]
        is_free = all(self._losses.is_settled(grant.shadow.uid) for grant in lost)
        if request.policy is Policy.LOST or not is_free:  # the busy policy is not for what is lost
            return is_free and len(lost) == len(grants)
        grants = tuple(grant for grant in grants if grant not in lost)
        if self._grafts.ledger.is_outdated(request.key, request.order):
            raise StaleRequest(f"{request.order} of mount {request.key} is not the latest")
        if request.policy is Policy.TERMINATE:
            spared = frozenset[int]() if request.include_main_process else mains
            gone = await self._withdrawal.terminate(
                grants, grace_s=request.grace_s, mains=mains, spared=spared
            )
        else:
            gone = await self._withdrawal.release(grants)
        # A loss that has begun meanwhile is under way: it says when its holders are gone.
        return gone and not any(self._losses.has_begun(grant.shadow.uid) for grant in grants)

    async def _main_processes(self, request: RemoveRequest) -> frozenset[int]:
        """Return the pids of the pod's main processes, which TERMINATE is to know."""
        if request.policy is not Policy.TERMINATE:
            return frozenset()
        return await main_processes(self._runtime, request.key.pod_uid)

    async def _check_unknown(self, key: MountKey) -> None:
        """Raise NodeUnavailable when a damaged journal may hide a grant of this target pod."""
        if self._journal.damage and await self._runtime.running(key.pod_uid):
            raise NodeUnavailable(f"the journal is damaged: {self._journal.damage}")

    async def _lose_for_good(self, grant: Grant) -> None:
        uid = grant.shadow.uid
        self._losses.begin(uid, reservation_lost(_gone_text(grant)))
        await self._losses.settled((uid,))
        async with self._grafts.lock(grant.key.pod_uid):
            if self._losses.is_settled(uid):  # else somebody holds a device: it stays reserved
                self._drop(grant)

    async def _lose_all(self, request: RemoveRequest) -> None:
        """Handle what the operator says is lost; what takes longer goes on by itself."""
        grants = self._grafts.ledger.of_mount(request.key)
        lost = [grant for grant in grants if request.concerns(grant.shadow)]
        for grant in lost:
            self._losses.begin(grant.shadow.uid, reservation_lost(_gone_text(grant)))
        await self._losses.settled(grant.shadow.uid for grant in lost)

    def _drop(self, grant: Grant) -> None:
        self._grafts.drop(grant)
        self._losses.forget(grant.shadow.uid)
        self._usability.forget(grant)

    def _note_rest(self, request: RemoveRequest, removed: tuple[Grant, ...]) -> None:
        """Say whether what is left is all that is asked for: what was lost is asked for still."""
        if request.policy is Policy.LOST:
            if removed:  # of what was never granted nobody said that it was there
                self._grafts.begin(request.key)
        elif self.state(request.key).phase is Phase.GRANTED:
            self._grafts.complete(request.key)

    def _keep_containers(self, pod_uid: PodUID) -> None:
        attempted = (attempt.container_id for attempt in self._attempts.values())
        granted = (
            grant.container_id
            for grant in self._grafts.ledger.grants.values()
            if self._containers.running(grant.container_id)
        )
        used = {container_id for container_id in (*attempted, *granted) if container_id}
        self._containers.keep(used, pod_uid=pod_uid)

    # ---- what is so

    def state(self, key: MountKey, removed: tuple[ShadowState, ...] = ()) -> MountState:
        """Return what is so of one mount, besides what was just removed; REMOVED if nothing is."""
        grants = self._grafts.ledger.of_mount(key)
        attempt = self._attempts.get(key)
        known = {grant.shadow.uid for grant in grants}
        waiting = (
            ShadowState(shadow.uid, shadow.name, Phase.WAITING)
            for shadow in (attempt.request.shadow_pods if attempt else ())
            if shadow.uid not in known
        )
        current = tuple(grant for grant in grants if self._is_usable(grant))
        return MountState(
            key=key,
            shadow_pods=(*map(self._shadow_state, grants), *waiting, *removed),
            container_id=max(grants, key=lambda g: g.granted_unix_ns).container_id
            if grants
            else None,
            granted_unix_ns=max((grant.granted_unix_ns for grant in current), default=0),
            timings_us=self._timings.get(key, {}),
            is_incomplete=self._grafts.shown.is_incomplete(key),
        )

    def _shadow_state(self, grant: Grant) -> ShadowState:
        uid = grant.shadow.uid
        return ShadowState(
            uid=uid,
            name=grant.shadow.name,
            phase=self._phase(grant),
            devices=grant.devices,
            holders=self._grafts.holders.of(uid),
            env_file=self._grafts.shown.env_file(grant),
            health=self._usability.health.of_all(grant.devices),
            concerns=(*self._grafts.concerns(grant), *self._usability.concerns(grant)),
            repairs=self._grafts.history.repairs[uid],
            restarts=self._grafts.history.restarts[uid],
            lost=self._grafts.history.losses.get(uid),
            container=grant.target.container,
            granted_unix_ns=grant.granted_unix_ns if self._is_usable(grant) else 0,
        )

    def _is_usable(self, grant: Grant) -> bool:
        """Tell whether its devices can be opened in a container that runs."""
        uid = grant.shadow.uid
        is_permitted = uid in self._grafts.live and uid not in self._grafts.doubtful
        runs = self._containers.running(grant.container_id) is not None
        return grant.stage is Stage.COMMITTED and is_permitted and runs

    def _phase(self, grant: Grant) -> Phase:
        uid = grant.shadow.uid
        if grant.stage is Stage.LOST and self._losses.is_revoked(uid):
            return Phase.LOST
        if grant.stage is not Stage.COMMITTED:
            return Phase.WAITING
        if self._grafts.holders.are_blocking((uid,)):
            return Phase.BUSY
        if uid in self._grafts.doubtful:
            return Phase.WAITING
        if self._containers.running(grant.container_id) is None:
            return Phase.TARGET_ENDED
        return Phase.GRANTED


def _gone_text(grant: Grant) -> str:
    return f"shadow pod {grant.shadow.name} has ended or is being deleted"


def _gone(request: RemoveRequest, grants: Iterable[Grant]) -> tuple[ShadowState, ...]:
    names = {grant.shadow.uid: grant.shadow.name for grant in grants}
    return tuple(
        ShadowState(uid, names.get(uid, ""), Phase.REMOVED)
        for uid in sorted(request.shadow_uids | names.keys())
    )


def _seen(task: asyncio.Task[Any]) -> None:
    """Take note of how a task ended: who waited for it may have gone away."""
    if not task.cancelled():
        task.exception()


async def _both(
    one: Coroutine[None, None, _Said], other: Coroutine[None, None, _Found]
) -> tuple[_Said, _Found]:
    """Wait for both; the first error ends the other one."""
    first, second = asyncio.create_task(one), asyncio.create_task(other)
    try:
        return await asyncio.gather(first, second)
    finally:
        first.cancel()
        second.cancel()
