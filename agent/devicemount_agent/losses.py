# SPDX-License-Identifier: Apache-2.0
"""Carries losses to their end: access goes first, holders are ended before the device changes
hands, and only then the fence is lowered.

While `hold` runs and the kubelet shows the device as the shadow pod's, holders are given time: the
fence's, less a margin. Without that they are killed at once. A loss is tried again until nobody
holds the device any more; it is never undone, and shown until the operator removes the grant. It
waits for nobody: whoever has the lock of the target pod may search the node for long. Only to
clear what was placed it takes that lock.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from devicemount_agent import metrics
from devicemount_agent.errors import DeviceMountError, NodeUnavailable
from devicemount_agent.grafts import Grafts, facts
from devicemount_agent.journal import Journal
from devicemount_agent.ledger import SHADOW_NOT_RUNNING, Grant, Loss, Lost, Stage
from devicemount_agent.logs import line
from devicemount_agent.model import Concern, PodUID
from devicemount_agent.shadow import ShadowPods
from devicemount_agent.withdrawal import Withdrawal
from devicemount_agent_api.failpoints import Failpoint, fire

RESERVATION_LOST = "ReservationLost"
GRACE_S = 55.0  # the fence's 60 s, less what the kubelet was ahead of us and KILL needs
FENCE_CHECK_S = 1.0  # kubelet and runtime answer in milliseconds; who is silent guards nothing
PAUSE_S = 0.5  # before a loss is tried again, doubled each time
PAUSE_LIMIT_S = 5.0
SETTLE_S = 20.0  # how long a caller waits for the end of one: it calls again

log = logging.getLogger(__name__)

IsReserved = Callable[[Grant], Awaitable[bool]]


@dataclass(slots=True)
class _Course:
    """One loss under way."""

    loss: Loss
    kill_at: float  # CLOCK_MONOTONIC
    hurried: asyncio.Event = field(default_factory=asyncio.Event)
    is_revoked: bool = False
    is_hunted: bool = False
    has_failed: bool = False  # the last round did not come to its end
    is_resting: bool = False
    task: "asyncio.Task[None] | None" = None
    strike: "asyncio.Task[None] | None" = None


class Losses:
    """Of all grants, by their shadow pods."""

    def __init__(
        self,
        journal: Journal,
        grafts: Grafts,
        withdrawal: Withdrawal,
        shadow_pods: ShadowPods,
        *,
        is_reserved: IsReserved,
    ) -> None:
        """`is_reserved` tells whether the kubelet has the devices as this shadow pod's alone."""
        self._journal = journal
        self._grafts = grafts
        self._withdrawal = withdrawal
        self._shadow_pods = shadow_pods
        self._is_reserved = is_reserved
        self._courses: dict[PodUID, _Course] = {}
        self._settled: set[PodUID] = set()

    def begin(self, uid: PodUID, why: Concern) -> None:
        """Handle a loss. Returns at once: no loss may delay another. Idempotent."""
        grant = self._grafts.ledger.grants.get(uid)
        if grant is None or uid in self._courses or uid in self._settled:
            return
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        loss = grant.loss or Loss(why, kill_boot_ns=now + int(GRACE_S * 1e9))
        left_s = (loss.kill_boot_ns - now) / 1e9
        course = self._courses[uid] = _Course(loss, kill_at=time.monotonic() + left_s)
        self._grafts.lost.add(uid)  # from here on nobody can give it back
        course.task = asyncio.create_task(self._run(uid, course))

    async def settled(self, uids: Iterable[PodUID]) -> None:
        """Wait until these have come to their end, but for SETTLE_S only."""
        tasks = [c.task for uid in uids if (c := self._courses.get(uid)) and c.task]
        if tasks:
            await asyncio.wait(tasks, timeout=SETTLE_S)

    async def freed(self, grant: Grant) -> None:
        """Wait until nobody has this grant's devices by another one: they have changed hands.

        A target that runs already could open them milliseconds after the kubelet's choice.
        """
        while others := self.others_with(grant):
            for uid in others:
                self.begin(uid, reservation_lost(f"shadow pod {grant.shadow.name} has the device"))
                self.hurry(uid)
            await self.settled(others)

    def has_begun(self, uid: PodUID) -> bool:
        """Tell whether a loss is under way or settled."""
        return uid in self._courses or uid in self._settled

    def is_revoked(self, uid: PodUID) -> bool:
        """Tell whether nobody can open a lost grant's devices by it any more."""
        course = self._courses.get(uid)
        return uid in self._settled or (course is not None and course.is_revoked)

    def is_settled(self, uid: PodUID) -> bool:
        """Tell whether a lost grant's devices are proven to be held by nobody."""
        return uid in self._settled

    def forget(self, uid: PodUID) -> None:
        """Let go of a loss whose grant was removed."""
        self._settled.discard(uid)

    def waiting(self) -> tuple[PodUID, ...]:
        """Return those whose holders still have time."""
        now = time.monotonic()
        return tuple(uid for uid, course in self._courses.items() if course.kill_at > now)

    def hurry(self, uid: PodUID) -> None:
        """Give holders no more time: no fence keeps the device. Idempotent."""
        course = self._courses.get(uid)
        if course is None or course.kill_at <= time.monotonic():
            return
        course.kill_at = time.monotonic()
        course.hurried.set()
        if course.is_hunted:  # not only after the search that is under way
            course.strike = asyncio.create_task(self._strike(uid))

    async def _strike(self, uid: PodUID) -> None:
        grant = self._grafts.ledger.grants.get(uid)
        if grant is None:
            return
        try:
            await self._withdrawal.strike(grant)
        except (DeviceMountError, OSError) as error:
            log.warning(line("could not strike", **facts(grant), error=error))

    async def finish(self) -> None:
        """Wait for what is being done; what only waits is in the journal."""
        while self._courses:
            for course in self._courses.values():
                if course.is_resting and course.task is not None:
                    course.task.cancel()
            tasks = [course.task for course in self._courses.values() if course.task]
            await asyncio.wait(tasks, timeout=PAUSE_S)

    # ---- one loss

    async def _run(self, uid: PodUID, course: _Course) -> None:
        pause_s = PAUSE_S
        try:
            while not await self._tried(uid, course):
                await self._rest(uid, course, pause_s)
                pause_s = min(2 * pause_s, PAUSE_LIMIT_S)
        finally:
            del self._courses[uid]
            if course.strike is not None:
                await asyncio.wait([course.strike])

    async def _tried(self, uid: PodUID, course: _Course) -> bool:
        course.has_failed = False
        try:
            return await self._round(uid, course)
        except Exception:  # whatever it was: one that is dropped ends in two tenants
            log.exception(line("could not handle loss", shadow_uid=uid))
            course.has_failed = True
            return False

    async def _round(self, uid: PodUID, course: _Course) -> bool:
        """Revoke, end who is to be ended by now; say whether nobody holds the devices."""
        grant = self._grafts.ledger.grants.get(uid)
        if grant is None:
            return True
        self._note(grant, course.loss)
        if not course.is_revoked:
            await self._revoke(grant, course)
        course.hurried.clear()  # by who hurries from here on, the round is over too late
        if course.kill_at <= time.monotonic():
            await self._strike(uid)
        course.is_hunted = True
        if not await self._withdrawal.hunt(grant, kill_at=course.kill_at) or not course.is_revoked:
            return False
        async with self._grafts.lock(grant.key.pod_uid):
            grant = self._grafts.ledger.grants.get(uid)  # it may have inherited what others made
            if grant is None:
                return True  # somebody has released it, where the loss could not be written
            await self._withdrawal.bury(grant)
            self._settled.add(uid)
        self._grafts.changes.note(grant.key)
        await self._shadow_pods.lower_fence(uid, grant.key.mount_uid)
        return True

    async def _revoke(self, grant: Grant, course: _Course) -> None:
        """Take access away, and see meanwhile whether a fence gives holders time.

        Where access cannot be taken holders are ended all the same, and it is tried again.
        """
        self._grafts.shown.note_incomplete(grant.key)
        has_time = course.kill_at > time.monotonic()
        fenced = asyncio.create_task(self._is_fenced(grant)) if has_time else None
        try:
            await self._grafts.revoke((grant,))
            course.is_revoked = True
            self._grafts.changes.note(grant.key)
        except (DeviceMountError, OSError) as error:
            course.has_failed = True
            log.error(line("could not revoke", **facts(grant), error=error))
        finally:
            if fenced is not None and not await fenced:
                self.hurry(grant.shadow.uid)

    def _note(self, grant: Grant, loss: Loss) -> None:
        """Write the loss before anything is done; where that fails access must go all the same."""
        uid = grant.shadow.uid
        self._grafts.history.losses[uid] = loss.why
        if grant.stage is Stage.LOST:
            return
        try:
            self._journal.append(Lost(uid, loss))
        except NodeUnavailable as error:
            log.error(line("lost unwritten", **facts(grant), error=error))
        metrics.losses.add(reason=loss.why.reason)
        why = {"reason": loss.why.reason, "said": loss.why.message}
        log.warning(line("lost", **facts(grant), **why))
        fire(Failpoint.AGENT_AFTER_LOST)

    async def _is_fenced(self, grant: Grant) -> bool:
        """Tell whether `hold` runs and the devices are its pod's: then nobody else gets them."""
        if grant.stage is Stage.INTENT:
            return False
        uid, mount_uid = grant.shadow.uid, grant.key.mount_uid
        try:
            async with asyncio.timeout(FENCE_CHECK_S):
                runs, is_reserved = await asyncio.gather(
                    self._shadow_pods.is_staying(uid, mount_uid), self._is_reserved(grant)
                )
        except (NodeUnavailable, TimeoutError) as error:
            log.warning(line("could not see fence", **facts(grant), error=repr(error)))
            return False
        return runs is not None and is_reserved

    async def _rest(self, uid: PodUID, course: _Course, pause_s: float) -> None:
        """Wait until it is worth another try: holders have ended, or their time is over."""
        course.is_resting = True
        ended = asyncio.create_task(self._paused(uid, course, pause_s))
        hurried = asyncio.create_task(course.hurried.wait())
        try:
            await asyncio.wait((ended, hurried), return_when=asyncio.FIRST_COMPLETED)
        finally:
            course.is_resting = False
            ended.cancel()
            hurried.cancel()

    async def _paused(self, uid: PodUID, course: _Course, pause_s: float) -> None:
        """Wait for holders to end, or for so long: some only close the device, unheard.

        Never for no time: of who forks without end, each one has ended already.
        """
        now = time.monotonic()
        left_s = course.kill_at - now
        until = now + (min(pause_s, left_s) if left_s > 0 else pause_s)
        least = until if course.has_failed else min(until, now + pause_s / 10)
        await self._withdrawal.ended((uid,), until=until)
        await asyncio.sleep(least - time.monotonic())

    def others_with(self, grant: Grant) -> tuple[PodUID, ...]:
        """Return the other grants of its devices that are not proven to be held by nobody."""
        wanted = {(device.resource, device.id) for device in grant.devices}
        return tuple(
            uid
            for uid, other in self._grafts.ledger.grants.items()
            if uid != grant.shadow.uid
            and uid not in self._settled
            and not wanted.isdisjoint((d.resource, d.id) for d in other.devices)
        )


def shadow_not_running(grant: Grant, down_s: float) -> Concern:
    """Say that no fence has stood for too long."""
    fact = f"shadow pod {grant.shadow.name} has not run for {down_s:.0f} s"
    return Concern(SHADOW_NOT_RUNNING, fact)


def reservation_lost(fact: str) -> Concern:
    return Concern(RESERVATION_LOST, fact)
