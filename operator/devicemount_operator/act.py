# SPDX-License-Identifier: Apache-2.0
"""Carries a Decision out, in its order, and stops at the first action that is refused.

Every action may run twice from any crash point: a pod that exists is adopted only if it is ours in
every respect, what is gone is as good as deleted. Nothing is written after the Lease's deadline.
The answer of every write goes into the caches, so that the next pass sees what this one did.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import assert_never

from devicemount_agent_api.failpoints import Failpoint, fire
from devicemount_operator import errors, shadow_pod
from devicemount_operator.agents import AgentError, Agents, ApplyCall, RemoveCall
from devicemount_operator.caches import KnownMount, KnownShadow, Mounts, Shadows
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide import decision as do
from devicemount_operator.decide.observation import (
    FINALIZER,
    Grant,
    GrantPhase,
    Observation,
    Place,
    PodUID,
    Refusal,
    TargetPod,
    is_granted,
)
from devicemount_operator.memory import Memory
from devicemount_operator.reasons import Reason
from devicemount_operator.settings import Settings
from devicemount_operator.transport import JsonObject

log = logging.getLogger(__name__)

FINALIZER_TRIES = 5


Finalizers = tuple[str, ...]


class Refused(errors.DeviceMountError):
    """An action did not succeed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(slots=True)
class Subject:
    """What one pass is about. `created` is the shadow pod that this pass has made or adopted."""

    known: KnownMount
    memory: Memory
    observation: Observation
    created: KnownShadow | None = None

    @property
    def uid(self) -> str:
        return self.known.model.metadata.uid


class Actor:
    """Writes to the API server and asks the agents."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        agents: Agents,
        mounts: Mounts,
        shadows: Shadows,
        settings: Settings,
        wake: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._agents = agents
        self._mounts = mounts
        self._shadows = shadows
        self._settings = settings
        self._wake = wake

    async def carry_out(self, subject: Subject, actions: tuple[do.Action, ...]) -> Refusal | None:
        """Do all of it; returns how the first action that failed was refused.

        Raises NotFound when the DeviceMount is gone, LeaseLost when nothing may be written now.
        """
        try:
            for action in actions:
                await self._carry_out(subject, action)
        except errors.DeviceMountError as error:
            if isinstance(error, errors.NotFound | errors.LeaseLost):
                raise
            return refusal_of(error, now=time.monotonic())
        return None

    async def _carry_out(self, subject: Subject, action: do.Action) -> None:
        match action:
            case do.CreateShadowPod():
                await self._create_shadow_pod(subject, action)
            case do.StartApply():
                self._start_apply(subject, action)
            case do.Remove():
                await self.remove(subject.uid, subject.memory, action)
            case do.DeleteShadowPod():
                await self.delete_shadow_pod(subject.uid, action)
            case do.AddFinalizer():
                await self._write_finalizers(subject.known, _with_ours)
            case do.DropFinalizer():
                await self._write_finalizers(subject.known, _without_ours)
            case _:
                assert_never(action)

    # Reservation

    async def _create_shadow_pod(self, subject: Subject, action: do.CreateShadowPod) -> None:
        """POST under the first name that nobody else has.

        One that exists and is ours is taken up.
        """
        for ordinal in range(action.ordinal, shadow_pod.MAX_ORDINALS):
            raw = await self._post(subject, ordinal)
            if raw is None:
                continue
            fire(Failpoint.OPERATOR_AFTER_SHADOW_POD)
            self._shadows.put(raw, now=time.monotonic())
            subject.created = self._shadows.get(subject.uid, PodUID(raw["metadata"]["uid"]))
            log.info("reserved mount=%s/%s shadow=%s", *subject.known.key, raw["metadata"]["name"])
            return
        text = f"the names of {shadow_pod.MAX_ORDINALS} shadow pods are taken by pods of others"
        raise Refused(Refusal(reason=Reason.NOT_ALLOWED, message=text, at=time.monotonic()))

    async def _post(self, subject: Subject, ordinal: int) -> JsonObject | None:
        """Return the pod of that ordinal; None: the name is another's. Raises ApiError."""
        target, mount = subject.observation.target, subject.known.model
        if not isinstance(target, TargetPod):
            raise TypeError("a shadow pod is decided on only after the target was read")
        image = self._settings.hold_image
        body = shadow_pod.build(
            mount,
            target=target,
            ordinal=ordinal,
            image=image,
            pull_secret=self._settings.hold_pull_secret,
            priority_class=subject.observation.priority_class,
        )
        namespace, name = mount.metadata.namespace, body["metadata"]["name"]
        try:
            return await self._cluster.create_pod(namespace, body)
        except errors.AlreadyExists:
            log.info("a pod of this name exists already pod=%s/%s", namespace, name)
        try:
            existing = await self._cluster.get_pod(ObjectKey(namespace, name))
        except errors.NotFound:
            return None
        ours = shadow_pod.is_adoptable(existing, mount=mount, image=image)
        return existing if ours and "deletionTimestamp" not in existing["metadata"] else None

    # Grant

    def _start_apply(self, subject: Subject, action: do.StartApply) -> None:
        """Ask the agent in a task of its own: the key stays free for a deletion."""
        shadow = subject.created
        if action.shadow_uid is not None:
            shadow = self._shadows.get(subject.uid, action.shadow_uid)
        if shadow is None:
            return  # it went while this pass acted: the watch has queued the key
        spec = subject.known.model.spec
        call = ApplyCall(
            mount_uid=subject.uid,
            mount_name=subject.known.key.name,
            namespace=subject.known.key.namespace,
            pod_name=spec.target.pod_name,
            container=action.container,
            container_id=action.container_id,
            place=action.place,
            shadow_name=shadow.key.name,
            shadow_uid=shadow.uid,
            resources=spec.resources.limits,
            accept_env_file=spec.reservation.accept_env_file,
        )
        memory = subject.memory
        memory.end_apply()
        memory.applied = time.monotonic()
        memory.applying, memory.container = shadow.uid, action.container
        memory.apply_task = asyncio.ensure_future(self._apply(memory, call))

    async def _apply(self, memory: Memory, call: ApplyCall) -> None:
        try:
            said = await self._agents.apply(call)
        except AgentError as error:
            now = time.monotonic()
            memory.refusal = Refusal(reason=error.reason, message=str(error), at=now)
            log.info("not granted shadow=%s reason=%s", call.shadow_name, error.reason.value)
        else:
            if said.phase is GrantPhase.GRANTED:
                fire(Failpoint.OPERATOR_AFTER_GRANT)
            memory.answered(said.grants, now=time.monotonic())
        memory.applying = memory.apply_task = None
        self._wake(call.mount_uid)

    # Release

    async def remove(self, mount_uid: str, memory: Memory, action: do.Remove) -> None:
        """Have the agent take devices back.

        Raises AgentError; Refused while a process holds one.
        """
        call = RemoveCall(
            mount_uid=mount_uid,
            place=action.place,
            policy=action.policy,
            shadow_uids=action.shadow_uids,
            grace_s=action.grace_s,
            include_main=action.include_main,
        )
        said = await self._agents.remove(call)
        memory.answered(said.grants, now=time.monotonic())
        asked = frozenset(action.shadow_uids) or self._shadows_in(mount_uid, memory, action.place)
        kept = [
            grant
            for grant in said.grants
            if grant.shadow_uid in asked and grant.phase is not GrantPhase.REMOVED
        ]
        if kept or not (said.grants or said.phase is GrantPhase.REMOVED):
            raise Refused(_busy(kept))
        if memory.applying in asked or not action.shadow_uids:
            memory.end_apply()
        memory.released.update(asked)
        log.info("released mount_uid=%s node=%s", mount_uid, action.place.node)
        fire(Failpoint.OPERATOR_AFTER_REVOKE)

    def _shadows_in(self, mount_uid: str, memory: Memory, place: Place) -> frozenset[PodUID]:
        there = (s.uid for s in self._shadows.of(mount_uid) if s.place == place)
        return memory.shadows_in(place).union(there)

    async def delete_shadow_pod(self, mount_uid: str, action: do.DeleteShadowPod) -> None:
        """Delete exactly that pod, at once; one that is gone or another's is as good as deleted."""
        shadow = self._shadows.get(mount_uid, action.uid)
        if shadow is None:
            return
        with suppress(errors.NotFound, errors.Conflict):
            await self._cluster.delete_pod(shadow.key, uid=shadow.uid)
        self._shadows.delete(shadow)

    async def _write_finalizers(
        self, known: KnownMount, change: Callable[[Finalizers], Finalizers]
    ) -> None:
        """PUT the object with other finalizers: its own test, and cheaper than a JSON patch."""
        uid = known.model.metadata.uid
        raw = (self._mounts.get(uid) or known).raw
        for _ in range(FINALIZER_TRIES):
            before = tuple(raw["metadata"].get("finalizers") or ())
            after = change(before)
            if after == before or (FINALIZER in after and raw["metadata"].get("deletionTimestamp")):
                return
            body = {**raw, "metadata": {**raw["metadata"], "finalizers": list(after)}}
            try:
                self._mounts.put(
                    await self._cluster.replace_mount(known.key, body), now=time.monotonic()
                )
                return
            except errors.Conflict:
                raw = await self._cluster.get_mount(known.key)
            if raw["metadata"]["uid"] != uid:
                raise errors.NotFound(f"{known.key} is another object now", status=404)
            if self._mounts.put(raw, now=time.monotonic()):
                self._wake(uid)  # what others wrote is known by this answer: no event will tell
        raise errors.Conflict(f"{known.key} changes faster than it can be written", status=409)


def _with_ours(names: Finalizers) -> Finalizers:
    return names if FINALIZER in names else (*names, FINALIZER)


def _without_ours(names: Finalizers) -> Finalizers:
    return tuple(name for name in names if name != FINALIZER)


def _busy(kept: list[Grant]) -> Refusal:
    holders = tuple(holder for grant in kept for holder in grant.holders)
    return Refusal(
        reason=Reason.DEVICE_BUSY,
        message="",
        at=time.monotonic(),
        holders=holders,
        holders_total=sum(grant.holders_total for grant in kept),
        is_revoked=bool(kept) and not any(map(is_granted, kept)),
    )


_FORBIDDEN: Mapping[errors.ForbiddenBy, Reason] = {
    errors.ForbiddenBy.QUOTA: Reason.QUOTA_EXCEEDED,
    errors.ForbiddenBy.POLICY: Reason.NOT_ALLOWED,
    errors.ForbiddenBy.RBAC: Reason.NOT_ALLOWED,
    errors.ForbiddenBy.NAMESPACE: Reason.NAMESPACE_TERMINATING,
}


def refusal_of(error: errors.DeviceMountError, *, now: float) -> Refusal:
    """Return what an error means for the mount, as a reason of the table."""
    match error:
        case Refused():
            return error.refusal
        case AgentError():
            reason = error.reason
        case errors.Forbidden():
            reason = _FORBIDDEN[error.by]
        case errors.Invalid():
            reason = Reason.NOT_ALLOWED
        case errors.ApiError():
            reason = Reason.API_UNAVAILABLE
        case _:
            raise error
    return Refusal(reason=reason, message=str(error), at=now)
