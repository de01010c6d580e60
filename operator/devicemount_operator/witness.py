# SPDX-License-Identifier: Apache-2.0
"""Target pods watched to their end, where no agent is there to tell it.

A pod that is deleted in peace is gone a moment after its kubelet has said that its containers have
ended: only a watch is sure to see that last object, which proves that its devices are free. What is
watched so is one pod each, and only while something is reserved on a node without an agent.
"""

import asyncio
import logging
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final, NamedTuple

from devicemount_operator import pods
from devicemount_operator.cluster import ObjectKey
from devicemount_operator.decide.observation import PodUID, TargetPod
from devicemount_operator.decide.split import PartKey
from devicemount_operator.reflector import Changed, Reflector, Selection
from devicemount_operator.transport import JsonObject

MAX_WATCHED: Final = 256  # whoever comes later is looked at now and then, as all are

log = logging.getLogger(__name__)


class Case(NamedTuple):
    """One target of a mount."""

    mount_uid: str
    part: PartKey


@dataclass(slots=True)
class _Watched:
    pod_uid: PodUID
    task: "asyncio.Task[None]"
    last: TargetPod | None = None  # once it is gone


class Witness:
    """Watches pods for those who wait for their end."""

    def __init__(
        self, *, reflector: Callable[[Selection], Reflector], wake: Callable[[str], None]
    ) -> None:
        self._reflector = reflector
        self._wake = wake
        self._watched: dict[Case, _Watched] = {}

    def watch(self, case: Case, key: ObjectKey, *, uid: PodUID) -> None:
        """See that pod to its end, unless it is watched already or too many are."""
        known = self._watched.get(case)
        if known is not None and known.pod_uid == uid:
            return
        self.leave(case)
        if len(self._watched) < MAX_WATCHED:
            log.info("a target is watched, since no agent tells its end pod=%s/%s", *key)
            task = asyncio.create_task(self._follow(case, key, uid))
            self._watched[case] = _Watched(uid, task)

    def last(self, case: Case) -> TargetPod | None:
        """Return the last object of a pod that is gone; None: nobody saw it."""
        known = self._watched.get(case)
        return None if known is None else known.last

    def leave(self, case: Case) -> None:
        """Watch it no longer, and forget it."""
        if (known := self._watched.pop(case, None)) is not None:
            known.task.cancel()

    def keep(self, mount_uid: str, *, parts: Container[PartKey]) -> None:
        """Leave all that is watched for a mount, but for these of its targets."""
        of_mount = [case for case in self._watched if case.mount_uid == mount_uid]
        for case in of_mount:
            if case.part not in parts:
                self.leave(case)

    async def close(self) -> None:
        """End every watch."""
        tasks = [watched.task for watched in self._watched.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, case: Case, key: ObjectKey, uid: PodUID) -> None:
        async for event in self._reflector(_only(key)).events():
            if isinstance(event, Changed) and _is_end(event, uid):
                self._watched[case].last = pods.to_target(event.object)
                self._wake(case.mount_uid)
                return


def _only(key: ObjectKey) -> Selection:
    path = f"/api/v1/namespaces/{key.namespace}/pods"
    return Selection(path, label_selector="", field_selector=f"metadata.name={key.name}")


def _is_end(event: Changed, uid: PodUID) -> bool:
    raw: JsonObject = event.object
    return event.deleted and pods.uid_of(raw) == uid
