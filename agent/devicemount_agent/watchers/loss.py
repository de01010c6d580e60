# SPDX-License-Identifier: Apache-2.0
"""Notices that a granted device stands under another living pod: the one loss that cannot wait for
the operator.

The checkpoint is written before the other pod's sandbox is made, so there is time to revoke before
its containers run. It keeps dead pods, so it only raises the suspicion; List, which shows living
pods, decides.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from devicemount_agent.allocation.kubelet import Checkpoint, Entry, Listing, PodResources
from devicemount_agent.allocation.read import other_with
from devicemount_agent.errors import DeviceMountError
from devicemount_agent.grafts import facts
from devicemount_agent.ledger import Grant, Ledger, Stage
from devicemount_agent.logs import line
from devicemount_agent.losses import Losses, reservation_lost
from devicemount_agent.model import DeviceID, PodUID, ResourceName

RETRY_S = 0.2

Pods: TypeAlias = Mapping[tuple[ResourceName, DeviceID], set[PodUID]]
"""Under which pods a device stands, dead ones included."""

log = logging.getLogger(__name__)


async def watch(
    checkpoint: Checkpoint,
    pod_resources: PodResources,
    losses: Losses,
    *,
    ledger: Callable[[], Ledger],
) -> None:
    """Look at every version of the checkpoint, for ever; also at one that cannot be read yet."""
    said = ""
    read: tuple[Entry, ...] = ()
    pods: Pods = {}
    judged: Ledger | None = None  # by that and by `read`, these are:
    shared: tuple[Grant, ...] = ()
    while True:
        try:
            async for entries in checkpoint.versions():
                if entries is not read:
                    read, pods, judged = entries, by_device(entries), None
                if (now := ledger()) is not judged:
                    judged, shared = now, elsewhere(pods, now.grants.values())
                if suspects := suspected(shared, losses):
                    await _judge(suspects, pod_resources, losses)
        except (DeviceMountError, OSError) as error:
            if str(error) != said:
                log.warning(line("could not judge", error=error))
            said = str(error)
        await asyncio.sleep(RETRY_S)


def by_device(entries: Iterable[Entry]) -> Pods:
    pods: defaultdict[tuple[ResourceName, DeviceID], set[PodUID]] = defaultdict(set)
    for entry in entries:
        for device_id in entry.ids:
            pods[entry.resource, device_id].add(entry.pod_uid)
    return dict(pods)


def elsewhere(pods: Pods, grants: Iterable[Grant]) -> tuple[Grant, ...]:
    """Return the grants of which a device stands under another pod's UID too."""
    return tuple(
        grant
        for grant in grants
        if any(pods.get((d.resource, d.id), set()) - {grant.shadow.uid} for d in grant.devices)
    )


def other_pod(listing: Listing, grant: Grant) -> tuple[str, str] | None:
    """Return another living pod (namespace, name) that has a device of the grant, or None."""
    return other_with(listing, grant.target.namespace, grant.shadow.name, grant.ids())


def suspected(shared: Iterable[Grant], losses: Losses) -> tuple[Grant, ...]:
    """Leave out those that are being lost, but for those whose holders still have time."""
    waiting = losses.waiting()
    return tuple(g for g in shared if _is_safe(g, losses) or g.shadow.uid in waiting)


def _is_safe(grant: Grant, losses: Losses) -> bool:
    return grant.stage is Stage.COMMITTED and not losses.has_begun(grant.shadow.uid)


async def _judge(suspects: Iterable[Grant], pod_resources: PodResources, losses: Losses) -> None:
    listing = await pod_resources.list()
    for grant in suspects:
        other = other_pod(listing, grant)
        if other is None:
            continue
        if _is_safe(grant, losses):
            log.error(line("found device elsewhere", **facts(grant), other="/".join(other)))
        losses.begin(grant.shadow.uid, reservation_lost(f"pod {'/'.join(other)} has the device"))
        losses.hurry(grant.shadow.uid)
