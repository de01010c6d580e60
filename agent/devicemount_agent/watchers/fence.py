# SPDX-License-Identifier: Apache-2.0
"""Notices what becomes of the fences: the `hold` of each shadow pod that has a grant.

Its name says that its pod is being deleted, which on older kubelets nothing else on the node tells;
nobody can be woken by that, so all names are read every second (ADR 11). Its end is heard at once
by its pidfd. A `hold` that runs again in a living pod is no loss, since the kubelet keeps the
device; but while none runs there is no fence, so that is a loss after 20 s.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable

from devicemount_agent.allocation.kubelet import Listing, PodResources
from devicemount_agent.allocation.read import is_shown, other_with
from devicemount_agent.errors import DeviceMountError, NotAllowed
from devicemount_agent.ledger import Grant, Ledger, Stage
from devicemount_agent.logs import line
from devicemount_agent.losses import Losses, reservation_lost, shadow_not_running
from devicemount_agent.model import ContainerID, PodUID
from devicemount_agent.shadow import Hold, HoldState, ShadowPods

SWEEP_S = 1.0  # a fence lasts a minute
SOON_S = 0.25  # while one is down or not up yet, or holders have time only as long as it stands
DOWN_LIMIT_S = 20.0
START_S = 1.0  # after the grant, which comes long before its shadow pod runs

log = logging.getLogger(__name__)


class Fences:
    """The shadow pods' processes, held open from when they run."""

    def __init__(
        self,
        shadow_pods: ShadowPods,
        pod_resources: PodResources,
        losses: Losses,
        *,
        ledger: Callable[[], Ledger],
    ) -> None:
        self._shadow_pods = shadow_pods
        self._pod_resources = pod_resources
        self._losses = losses
        self._ledger = ledger
        self._up: dict[PodUID, Hold] = {}
        self._down_since_s: dict[PodUID, float] = {}  # by the loop's clock
        self._absent_since_s: dict[PodUID, float] = {}  # from List
        self._fallen: set[PodUID] = set()  # that are down and did run
        self._woken = asyncio.Event()

    async def watch(self) -> None:
        """Look every second and whenever a `hold` ends, then more often, for ever."""
        said = ""
        try:
            while True:
                self._woken.clear()
                try:
                    await self._sweep()
                    said = ""
                except (DeviceMountError, OSError) as error:
                    if str(error) != said:
                        log.warning(line("could not see fences", error=error))
                    said = str(error)
                await self._pause()
        finally:
            self._keep(())

    def stands(self, uid: PodUID) -> bool:
        """Tell whether the grant's `hold` is known to run."""
        return uid in self._up

    def down_s(self, uid: PodUID) -> float:
        """Return for how long no fence has stood for a grant."""
        now = asyncio.get_running_loop().time()
        return now - self._down_since_s.get(uid, now)

    async def _pause(self) -> None:
        is_urgent = self._down_since_s or self._losses.waiting()
        try:
            async with asyncio.timeout(SOON_S if is_urgent else SWEEP_S):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _sweep(self) -> None:
        waiting = set(self._losses.waiting())
        grants = {
            uid: grant
            for uid, grant in self._ledger().grants.items()
            if grant.stage is Stage.COMMITTED or uid in waiting
        }
        self._keep(grants)
        for uid, hold in self._up.items():
            if hold.state() is HoldState.DELETED:
                fact = f"shadow pod {grants[uid].shadow.name} is being deleted"
                self._losses.begin(uid, reservation_lost(fact))
        down = [grant for uid, grant in grants.items() if uid not in self._up]
        if down:
            try:
                down = await self._still_down(down)
            finally:  # whoever does not answer
                self._give_up(down)
        await self._judge(
            [grant for grant in down if self._is_due(grant.shadow.uid)],
            [grants[uid] for uid in self._losses.waiting() if uid in grants],
        )

    async def _still_down(self, down: Iterable[Grant]) -> list[Grant]:
        """Open what runs by now; return the grants without a fence."""
        running = await self._shadow_pods.running()
        now_s = asyncio.get_running_loop().time()
        missing = []
        for grant in down:
            uid = grant.shadow.uid
            hold = await self._opened(grant, running[uid]) if uid in running else None
            if hold is None:
                missing.append(grant)
                self._down_since_s.setdefault(uid, now_s)
            else:
                self._up[uid] = hold
                self._forget_down(uid)
                asyncio.get_running_loop().add_reader(hold.pidfd, self._ended, uid)
        return missing

    async def _opened(self, grant: Grant, container_id: ContainerID) -> Hold | None:
        uid, mount_uid = grant.shadow.uid, grant.key.mount_uid
        try:
            await self._shadow_pods.check(grant.shadow, grant.target.namespace, mount_uid)
        except NotAllowed as error:
            self._losses.begin(uid, reservation_lost(str(error)))
            return None
        return await self._shadow_pods.opened(uid, mount_uid, container_id)

    def _ended(self, uid: PodUID) -> None:
        """Close it; whether that is a loss is looked at right now."""
        log.info(line("hold ended", shadow_uid=uid))
        self._close(uid)
        self._fallen.add(uid)
        self._down_since_s.setdefault(uid, asyncio.get_running_loop().time())
        self._woken.set()

    def _give_up(self, down: Iterable[Grant]) -> None:
        for grant in down:
            if self.down_s(grant.shadow.uid) >= DOWN_LIMIT_S:
                self._losses.begin(grant.shadow.uid, shadow_not_running(grant, DOWN_LIMIT_S))

    def _is_due(self, uid: PodUID) -> bool:
        """Tell whether to ask what became of it; a pod just begun needs a while to run."""
        return uid in self._fallen or self.down_s(uid) >= START_S

    async def _judge(self, down: Collection[Grant], waiting: Collection[Grant]) -> None:
        """Ask the kubelet whose the devices are: of pods without a fence, and where holders have
        time as long as a fence keeps the device."""
        if not down and not waiting:
            return
        listing = await self._pod_resources.list()
        for grant in waiting:
            if grant.shadow.uid not in self._up or not is_reserved(grant, listing):
                self._losses.hurry(grant.shadow.uid)
        for grant in down:
            if await self._is_gone(grant, listing):
                fact = f"shadow pod {grant.shadow.name} has ended"
                self._losses.begin(grant.shadow.uid, reservation_lost(fact))

    async def _is_gone(self, grant: Grant, listing: Listing) -> bool:
        """Tell whether kubelet and runtime agree that the pod of an ended `hold` is no more.

        A kubelet that has just begun knows no pods yet, so it has to know the target. The runtime
        may be slow to end a sandbox: then the kubelet has to say so twice.
        """
        uid, namespace = grant.shadow.uid, grant.target.namespace
        knows = (namespace, grant.target.pod_name) in listing
        if not knows or is_shown(listing, namespace, grant.shadow.name, grant.ids()):
            self._absent_since_s.pop(uid, None)
            return False
        now_s = asyncio.get_running_loop().time()
        is_sure = now_s - self._absent_since_s.setdefault(uid, now_s) >= SOON_S / 2
        return is_sure or not await self._shadow_pods.has_sandbox(uid)

    # ---- what is held open

    def _keep(self, grants: Collection[PodUID]) -> None:
        for uid in [uid for uid in self._up if uid not in grants]:
            self._close(uid)
        for uid in [uid for uid in self._down_since_s if uid not in grants]:
            self._forget_down(uid)

    def _close(self, uid: PodUID) -> None:
        hold = self._up.pop(uid)
        asyncio.get_running_loop().remove_reader(hold.pidfd)
        hold.close()

    def _forget_down(self, uid: PodUID) -> None:
        self._down_since_s.pop(uid, None)
        self._absent_since_s.pop(uid, None)
        self._fallen.discard(uid)


def is_reserved(grant: Grant, listing: Listing) -> bool:
    """Tell whether the kubelet has the devices as this shadow pod's, and nobody else's."""
    namespace, name, ids = grant.target.namespace, grant.shadow.name, grant.ids()
    is_ours = is_shown(listing, namespace, name, ids)
    return is_ours and other_with(listing, namespace, name, ids) is None
