# SPDX-License-Identifier: Apache-2.0
"""Shadow pods, and grants, whose DeviceMount is gone: it was deleted before it had our finalizer.

The shadow pod is the durable record of such a mount. Gone means that the API server names another
UID or no object at all under the recorded name; a kind that is not served says nothing. Then it is
handled like a deletion: nothing is taken from a process that holds it.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from devicemount_operator import errors, pods, shadow_pod
from devicemount_operator.act import Actor, Refused
from devicemount_operator.agents import AgentError
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.caches import KnownShadow, Shadows
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide.decision import (
    By,
    DeleteShadowPod,
    Discharge,
    Proof,
    Remove,
    RemovePolicy,
)
from devicemount_operator.decide.observation import NodeName, Place
from devicemount_operator.decide.proof import has_fallen_silent
from devicemount_operator.memory import Memory
from devicemount_operator.recorder import About, Recorder
from devicemount_operator.transport import JsonObject

log = logging.getLogger(__name__)


class Orphans:
    """Gives back what nobody owns any more."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        actor: Actor,
        shadows: Shadows,
        recorder: Recorder,
        hold_image: str,
        found: Callable[[JsonObject], None],
    ) -> None:
        self._cluster = cluster
        self._actor = actor
        self._shadows = shadows
        self._recorder = recorder
        self._hold_image = hold_image
        self._found = found

    async def release(self, mount_uid: str, memory: Memory) -> bool:
        """Release all of a mount that is gone; tells whether nothing is left to do."""
        shadows = [s for s in self._shadows.of(mount_uid) if is_made_by_us(s, self._hold_image)]
        memory.prune(shadow.uid for shadow in self._shadows.of(mount_uid))
        try:
            if shadows and not await self._is_gone(shadows[0], mount_uid):
                return True
            for shadow in filter(_is_ending, shadows):
                uids = (shadow.uid,)
                lost = Remove(place=shadow.place, policy=RemovePolicy.LOST, shadow_uids=uids)
                await self._remove(mount_uid, memory, lost)
            for place, of_place in _by_place(s for s in shadows if not _is_let_go(s)).items():
                await self._give_back(mount_uid, memory, place, of_place)
            for place in memory.places():
                lost = Remove(place=place, policy=RemovePolicy.LOST, shadow_uids=())
                await self._remove(mount_uid, memory, lost)
        except (AgentError, Refused, errors.ApiError) as error:
            log.warning("cannot release yet what is left of mount_uid=%s: %s", mount_uid, error)
            return False
        return True

    async def _is_gone(self, shadow: KnownShadow, mount_uid: str) -> bool:
        """Ask for the recorded name. Raises ApiError, also where the kind is not served."""
        annotations = shadow.raw["metadata"]["annotations"]
        key = ObjectKey(shadow.key.namespace, annotations[shadow_pod.MOUNT_ANNOTATION])
        try:
            raw = await self._cluster.get_mount(key)
        except errors.NotFound:
            return True
        if raw["metadata"]["uid"] == mount_uid:
            self._found(raw)
        return bool(raw["metadata"]["uid"] != mount_uid)

    async def _remove(self, mount_uid: str, memory: Memory, action: Remove) -> None:
        """Have the agent take devices back; one that stays silent on a node that is gone for good
        is not waited for. Raises AgentError, Refused."""
        try:
            await self._actor.remove(mount_uid, memory, action)
        except AgentError:
            node = action.place.node
            silence = memory.unanswered.get(node)
            if not has_fallen_silent(silence, now=time.monotonic()):
                raise
            if not await self._is_node_gone(node):
                raise
            text = f"node {node} is gone for good, and its agent does not answer"
            discharge = Discharge(
                place=action.place,
                shadow_uids=action.shadow_uids,
                proof=Proof(By.NODE, text),
                devices=(),
            )
            self._actor.discharge(mount_uid, memory, discharge)

    async def _is_node_gone(self, name: NodeName) -> bool:
        try:
            return pods.to_node(await self._cluster.get_node(name)).is_out_of_service
        except errors.NotFound:
            return True

    async def _give_back(
        self, mount_uid: str, memory: Memory, place: Place, shadows: list[KnownShadow]
    ) -> None:
        uids = tuple(shadow.uid for shadow in shadows)
        wait = Remove(place=place, policy=RemovePolicy.WAIT, shadow_uids=uids)
        await self._remove(mount_uid, memory, wait)
        for shadow in shadows:
            name = shadow.key.name
            await self._actor.delete_shadow_pod(
                mount_uid, DeleteShadowPod(name=name, uid=shadow.uid)
            )
            log.info("gave back what a deleted DeviceMount left shadow=%s/%s", *shadow.key)
            await self._tell(shadow)

    async def _tell(self, shadow: KnownShadow) -> None:
        meta = shadow.raw["metadata"]
        mount = meta["annotations"][shadow_pod.MOUNT_ANNOTATION]
        for owner in meta.get("ownerReferences") or ():
            if owner["kind"] == "Pod":
                await self._recorder.record(
                    About("v1", "Pod", shadow.key.namespace, owner["name"], owner["uid"]),
                    kind="Normal",
                    reason="Unmounted",
                    message=f"DeviceMount {mount} was deleted: its devices were given back",
                )


def _is_ending(shadow: KnownShadow) -> bool:
    """Say whether the kubelet gives the device away soon, so that nobody is waited for."""
    phase = (shadow.raw.get("status") or {}).get("phase")
    return "deletionTimestamp" in shadow.raw["metadata"] or phase in ("Failed", "Succeeded")


def _is_let_go(shadow: KnownShadow) -> bool:
    """Say whether it is deleted with grace 0: only somebody's finalizer keeps the object."""
    meta = shadow.raw["metadata"]
    return "deletionTimestamp" in meta and meta.get("deletionGracePeriodSeconds") == 0


def _by_place(shadows: Iterable[KnownShadow]) -> dict[Place, list[KnownShadow]]:
    places: dict[Place, list[KnownShadow]] = defaultdict(list)
    for shadow in shadows:
        places[shadow.place].append(shadow)
    return places


def is_made_by_us(shadow: KnownShadow, image: str) -> bool:
    """Tell our shadow pods from a pod that merely carries the label.

    What it records must fit itself.
    """
    meta = shadow.raw["metadata"]
    recorded: dict[str, Any] = {
        "metadata": {
            "uid": meta["labels"][shadow_pod.LABEL],
            "namespace": shadow.key.namespace,
            "name": (meta.get("annotations") or {}).get(shadow_pod.MOUNT_ANNOTATION, ""),
            "deletionTimestamp": datetime.now(UTC).isoformat(),  # it is gone, or it will be found
        },
        # not recorded, and no part of the judgement
        "spec": {"target": {"podName": "any"}, "resources": {"limits": {"any/any": 1}}},
    }
    mount = DeviceMount.model_validate(recorded)
    return shadow_pod.is_ours(shadow.raw, mount=mount, image=image)
