# SPDX-License-Identifier: Apache-2.0
"""Notices that a granted device stands under another living pod: the one loss that cannot wait for
the operator.

The checkpoint is written before the other pod's sandbox is made, so there is time to revoke before
its containers run. It keeps dead pods, so it only raises the suspicion; List, which shows living
pods, decides.
"""

import asyncio
import logging
from collections.abc import Iterable

from devicemount_agent.allocation.kubelet import Checkpoint, Entry, PodResources
from devicemount_agent.allocation.read import other_with
from devicemount_agent.errors import DeviceMountError
from devicemount_agent.grafts import facts
from devicemount_agent.ledger import Grant, Ledger, Stage
from devicemount_agent.logs import line
from devicemount_agent.mounts import Mounts

RETRY_S = 0.2

log = logging.getLogger(__name__)


async def watch(checkpoint: Checkpoint, pod_resources: PodResources, mounts: Mounts) -> None:
    """Look at every version of the checkpoint, for ever; also at one that cannot be read yet."""
    while True:
        try:
            async for entries in checkpoint.versions():
                suspects = suspected(entries, mounts.ledger)
                if suspects:
                    await _judge(suspects, pod_resources, mounts)
        except (DeviceMountError, OSError) as error:
            log.warning(line("could not judge", error=error))
        await asyncio.sleep(RETRY_S)


def suspected(entries: Iterable[Entry], ledger: Ledger) -> tuple[Grant, ...]:
    """Return the grants of which a device stands under another pod's UID too."""
    entries = tuple(entries)
    return tuple(
        grant
        for grant in ledger.grants.values()
        if grant.stage is Stage.COMMITTED and any(_is_other(entry, grant) for entry in entries)
    )


def _is_other(entry: Entry, grant: Grant) -> bool:
    wanted = grant.ids().get(entry.resource, frozenset())
    return entry.pod_uid != grant.shadow.uid and bool(entry.ids & wanted)


async def _judge(suspects: Iterable[Grant], pod_resources: PodResources, mounts: Mounts) -> None:
    listing = await pod_resources.list()
    for grant in suspects:
        other = other_with(listing, grant.target.namespace, grant.shadow.name, grant.ids())
        if other is not None:
            log.error(line("found device elsewhere", **facts(grant), other="/".join(other)))
            mounts.lose(grant.shadow.uid)
