# SPDX-License-Identifier: Apache-2.0
"""What a restarted agent does with its journal, before it serves anybody.

Running containers kept their access meanwhile. Committed grants are applied again where the
container is still the same and no other pod has their devices by now. An intent without its commit
may have been granted and even opened: it goes forward if the kubelet still gives the devices to
that shadow pod, and is handled as a loss if not; a bare roll-back would cut a device in use and
forget who opened it. What rebuild.py found revoked stays so: an intent that was never granted, with
all of it withheld. Of a damaged journal nothing is granted.
"""

import logging
from collections import defaultdict
from collections.abc import Collection

from devicemount_agent.allocation.kubelet import Checkpoint, PodResources
from devicemount_agent.allocation.read import Allocation
from devicemount_agent.container.find import Container
from devicemount_agent.container.known import KnownContainers
from devicemount_agent.errors import (
    ContainerMismatch,
    DeviceMountError,
    NodeUnavailable,
    TargetNotRunning,
)
from devicemount_agent.grafts import Grafts, facts
from devicemount_agent.journal import Journal
from devicemount_agent.ledger import Grant, Stage
from devicemount_agent.logs import line
from devicemount_agent.losses import Losses, reservation_lost
from devicemount_agent.model import PodUID
from devicemount_agent.timeline import Timeline
from devicemount_agent.usability import Usability
from devicemount_agent.watchers import loss

log = logging.getLogger(__name__)


class Recovery:
    """One pass over what the journal says. Idempotent: made again after NodeUnavailable."""

    def __init__(
        self,
        *,
        journal: Journal,
        grafts: Grafts,
        losses: Losses,
        containers: KnownContainers,
        checkpoint: Checkpoint,
        pod_resources: PodResources,
        allocation: Allocation,
        usability: Usability,
    ) -> None:
        self._journal = journal
        self._grafts = grafts
        self._losses = losses
        self._untold: list[Grant] = []
        self._containers = containers
        self._checkpoint = checkpoint
        self._pod_resources = pod_resources
        self._allocation = allocation
        self._usability = usability

    async def run(self) -> None:
        """Bring every grant of the journal to an end. Raises NodeUnavailable."""
        self._grafts.shown.reread()
        if not self._journal.damage:  # else there may be grants that no record names
            self._grafts.shown.forget_unneeded()
        of_pod: dict[PodUID, list[Grant]] = defaultdict(list)
        for grant in self._grafts.ledger.grants.values():
            of_pod[grant.key.pod_uid].append(grant)
        for pod_uid, grants in of_pod.items():
            async with self._grafts.lock(pod_uid):
                try:
                    await self._recover_pod(grants)
                except NodeUnavailable:
                    raise
                except (DeviceMountError, OSError):  # one pod does not keep the node from service
                    self._grafts.doubtful |= {grant.shadow.uid for grant in grants}
                    log.exception(line("not recovered", pod_uid=pod_uid))
        await self._forget_untold()
        log.info(line("recovered", grants=len(self._grafts.ledger.grants)))

    async def _forget_untold(self) -> None:
        """Let go of what was begun, and lost before anybody was told."""
        await self._losses.settled(grant.shadow.uid for grant in self._untold)
        for grant in self._untold:
            async with self._grafts.lock(grant.key.pod_uid):
                if self._losses.is_settled(grant.shadow.uid):
                    self._grafts.drop(grant)
                    self._losses.forget(grant.shadow.uid)
        self._untold.clear()

    async def _recover_pod(self, grants: list[Grant]) -> None:
        """Decide about all of a pod's grants first: the kernel is told the whole of a container."""
        containers = {grant.shadow.uid: await self._reopened(grant) for grant in grants}
        taken = await self._taken(grants)
        lost = [grant for grant in grants if not await self._stands(grant, taken)]
        standing = [grant for grant in grants if grant not in lost and not _was_revoked(grant)]
        self._grafts.live |= {grant.shadow.uid for grant in standing}
        self._grafts.doubtful |= {grant.shadow.uid for grant in grants if _was_revoked(grant)}
        if self._journal.damage:
            self._grafts.doubtful |= {grant.shadow.uid for grant in grants}
            return
        for grant in standing:
            container = containers[grant.shadow.uid]
            if container is not None:
                await self._brought_in(grant, container)
        for grant in lost:
            self._lose(grant)

    async def _reopened(self, grant: Grant) -> Container | None:
        """Return the container of the grant, if it still runs."""
        try:
            found = await self._containers.find(
                grant.target, pod_uid=grant.key.pod_uid, hint=grant.container_id
            )
        except (TargetNotRunning, ContainerMismatch):
            return None
        return found if found.id == grant.container_id else None

    async def _taken(self, grants: Collection[Grant]) -> frozenset[PodUID]:
        """Return the grants whose devices another pod has by now, as watchers/loss.py judges it.

        That the kubelet does not know the shadow pod is no proof: it may have just begun.
        """
        pods = loss.by_device(self._checkpoint.read())
        suspects = loss.elsewhere(pods, grants)
        listing = await self._pod_resources.list() if suspects else {}
        return frozenset(grant.shadow.uid for grant in suspects if loss.other_pod(listing, grant))

    async def _stands(self, grant: Grant, taken: Collection[PodUID]) -> bool:
        """Tell whether the grant is to be live; of a damaged journal no commit is sure."""
        if grant.stage is Stage.LOST or grant.shadow.uid in taken:
            return False
        if grant.stage is Stage.COMMITTED and not self._journal.damage:
            return True
        if self._losses.others_with(grant):
            return False  # they changed hands just then; who had them comes first
        return await self._allocation.still_holds(grant.shadow, grant.target.namespace, grant.ids())

    async def _brought_in(self, grant: Grant, container: Container) -> None:
        """Apply and verify again. What fails stays as it is, and is not called granted."""
        try:
            timeline = Timeline()
            again = await self._grafts.bring_in(grant, container, timeline)
            if grant.stage is Stage.INTENT:
                self._grafts.commit(again, timeline)
            await self._usability.look((again,))
        except (DeviceMountError, OSError) as error:
            self._grafts.doubtful.add(grant.shadow.uid)
            self._grafts.shown.update_all((grant,))
            log.error(line("not verified", **facts(grant), error=error))

    def _lose(self, grant: Grant) -> None:
        """Go on with a loss; a lost intent was never told to anybody, so it is forgotten too."""
        uid = grant.shadow.uid
        fact = f"the devices are no longer those of shadow pod {grant.shadow.name}"
        self._losses.begin(uid, reservation_lost(fact))
        if grant.stage is Stage.INTENT and not grant.granted_unix_ns:
            self._untold.append(grant)


def _was_revoked(grant: Grant) -> bool:
    """Tell what rebuild.py found revoked and held: what else is withheld was granted once."""
    return grant.stage is Stage.INTENT and not grant.granted_unix_ns and bool(grant.withheld)
