# SPDX-License-Identifier: Apache-2.0
"""Notices what the kubelet says of granted devices, and that their files on the node are others.

The kubelet writes its checkpoint when a device turns unhealthy or healthy, but not when a plugin
ends, which makes all its devices unhealthy too: that is asked every few seconds. Not every plugin
notices that a device file went, so the files are looked at on each version of the checkpoint, every
second while something is amiss, and else every few seconds.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from devicemount_agent.allocation.kubelet import Checkpoint, PodResources, Registered
from devicemount_agent.changes import Changes
from devicemount_agent.errors import DeviceMountError, NodeUnavailable
from devicemount_agent.ledger import Grant, Ledger, Stage
from devicemount_agent.logs import line
from devicemount_agent.model import DeviceID, PodUID, ResourceName
from devicemount_agent.renewal import Renewal
from devicemount_agent.usability import Usability

ALL_EVERY_S = 5.0
RETRY_S = 0.2

log = logging.getLogger(__name__)

Told: TypeAlias = Mapping[PodUID, tuple[object, ...]]


async def watch(
    checkpoint: Checkpoint,
    pod_resources: PodResources,
    usability: Usability,
    renewal: Renewal,
    *,
    ledger: Callable[[], Ledger],
    changes: Changes,
) -> None:
    """Look at every version of the checkpoint, for ever: there is one every second at least."""
    clock = asyncio.get_running_loop().time
    before: Registered = {}
    told: Told = {}
    ended: frozenset[ResourceName] = frozenset()
    all_at_s = 0.0
    while True:
        try:
            async for _ in checkpoint.versions():
                registered = checkpoint.registered()
                grants = committed(ledger())
                is_due = registered != before or bool(ended) or clock() >= all_at_s
                usability.health.note(_without(registered, ended), now_s=clock())
                if not is_due:
                    if not all(registered.values()):  # what is none for long becomes unhealthy
                        told = _noted(changes, usability, grants, told)
                    await renewal.follow([g for g in grants if not usability.health.is_well(g)])
                    continue
                before, all_at_s = registered, clock() + ALL_EVERY_S
                await renewal.follow(grants)  # first: a kubelet that is silent must not delay it
                said, ended = ended, await _without_plugin(pod_resources, registered, grants)
                if ended != said:
                    all_at_s = clock()  # what waited for health is followed up next time
                usability.health.note(_without(registered, ended), now_s=clock())
                await usability.look_again(grants)
                told = _noted(changes, usability, grants, told)
        except (DeviceMountError, OSError) as error:
            log.warning(line("could not see health", error=error))
        await asyncio.sleep(RETRY_S)


def _noted(changes: Changes, usability: Usability, grants: Iterable[Grant], told: Told) -> Told:
    """Note the mounts of which something else is said now; return what is said."""
    said = {
        grant.shadow.uid: (
            usability.concerns(grant),
            *usability.health.of_all(grant.devices).items(),
        )
        for grant in grants
    }
    for grant in grants:
        if told.get(grant.shadow.uid) != said[grant.shadow.uid]:
            changes.note(grant.key)
    return said


def committed(ledger: Ledger) -> tuple[Grant, ...]:
    return tuple(grant for grant in ledger.grants.values() if grant.stage is Stage.COMMITTED)


def _without(registered: Registered, ended: Iterable[ResourceName]) -> Registered:
    """Return what is healthy, nothing of a resource whose plugin has ended."""
    return {**registered, **dict.fromkeys(ended, frozenset[DeviceID]())}


async def _without_plugin(
    pod_resources: PodResources, registered: Registered, grants: Iterable[Grant]
) -> frozenset[ResourceName]:
    """Return the resources of grants that the checkpoint has and whose plugin has ended.

    Nothing where the kubelet does not say.
    """
    granted = {device.resource for grant in grants for device in grant.devices}
    asked = {resource for resource in granted if registered.get(resource)}
    if not asked:
        return frozenset()
    try:
        there = await pod_resources.allocatable()
    except NodeUnavailable as error:
        log.info(line("could not ask for plugins", error=error))
        return frozenset()
    return frozenset(resource for resource in asked if not there.get(resource))
