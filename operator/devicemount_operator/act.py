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
from devicemount_operator import errors, metrics, shadow_pod
from devicemount_operator.agents import (
    AgentError,
    Agents,
    ApplyCall,
    ApplyShadow,
    NoIdentity,
    RemoveCall,
)
from devicemount_operator.api.v1alpha1 import KIND
from devicemount_operator.caches import KnownMount, KnownShadow, Mounts, Shadows
from devicemount_operator.cluster import Cluster
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
from devicemount_operator.decide.split import Part
from devicemount_operator.memory import Memory, PartMemory
from devicemount_operator.messages import MountGrants
from devicemount_operator.posting import Poster, Wanted
from devicemount_operator.queue import aside
from devicemount_operator.reasons import Reason
from devicemount_operator.settings import Settings

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
    """One target pod of a mount. `created` is the shadow pod that this pass has made or adopted."""

    known: KnownMount
    memory: Memory
    part: Part
    observation: Observation
    created: KnownShadow | None = None

    @property
    def uid(self) -> str:
        return self.known.model.metadata.uid

    @property
    def part_memory(self) -> PartMemory:
        return self.memory.part(self.part.key, now=time.monotonic())


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
        self._poster = Poster(cluster=cluster, settings=settings)
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
            case do.Discharge():
                self.discharge(subject.uid, subject.memory, action)
            case do.DeleteShadowPod():
                await self.delete_shadow_pod(subject.uid, action)
            case do.AddFinalizer():
                await self._write_finalizers(subject.known, _with_ours)
            case do.DropFinalizer():
                await self._write_finalizers(subject.known, _without_ours)
            case do.DeleteMount():
                await self.delete_mount(subject.known)
            case _:
                assert_never(action)

    # Reservation

    async def _create_shadow_pod(self, subject: Subject, action: do.CreateShadowPod) -> None:
        """POST under the first name that nobody else has.

        One that exists and is ours is taken up.
        """
        target = subject.observation.target
        if not isinstance(target, TargetPod):
            raise TypeError("a shadow pod is decided on only after the target was read")
        wanted = Wanted(
            mount=subject.known.model,
            target=target,
            resources=action.resources,
            priority_class=subject.observation.priority_class,
        )
        for ordinal in range(action.ordinal, shadow_pod.MAX_ORDINALS):
            fire(Failpoint.OPERATOR_BEFORE_SHADOW_POD)
            raw = await self._poster.post(wanted, ordinal)
            if raw is None:
                continue
            fire(Failpoint.OPERATOR_AFTER_SHADOW_POD)
            self._shadows.put(raw, now=time.monotonic())
            subject.created = self._shadows.get(subject.uid, PodUID(raw["metadata"]["uid"]))
            log.info("reserved mount=%s/%s shadow=%s", *subject.known.key, raw["metadata"]["name"])
            return
        text = f"the names of {shadow_pod.MAX_ORDINALS} shadow pods are taken by pods of others"
        raise Refused(Refusal(reason=Reason.NOT_ALLOWED, message=text, at=time.monotonic()))

    # Grant

    def _start_apply(self, subject: Subject, action: do.StartApply) -> None:
        """Ask the agent in a task of its own: the key stays free for a deletion."""
        found = [self._shadows.get(subject.uid, uid) for uid in action.shadow_uids]
        shadows = [
            s for s in (*found, subject.created) if s is not None and s.place == action.place
        ]
        if not shadows or None in found:
            return  # one went while this pass acted: the watch has queued the key
        spec = subject.known.model.spec
        call = ApplyCall(
            mount_uid=subject.uid,
            mount_name=subject.known.key.name,
            namespace=subject.known.key.namespace,
            pod_name=subject.observation.pod_name,
            container=action.container,
            container_id=action.container_id,
            place=action.place,
            shadows=tuple(
                ApplyShadow(
                    name=shadow.key.name,
                    uid=shadow.uid,
                    resources=shadow_pod.counts_of(shadow.raw),
                )
                for shadow in shadows
            ),
            accept_env_file=spec.reservation.accept_env_file,
        )
        part = subject.part_memory
        part.end_apply()
        part.asked_at = time.monotonic()
        part.applied = None if part.is_measured else part.asked_at
        part.asked = part.applying = frozenset(shadow.uid for shadow in call.shadows)
        part.container, part.asked_for = action.container, spec.target
        part.apply_task = asyncio.ensure_future(self._apply(subject.memory, part, call))

    async def _apply(self, memory: Memory, part: PartMemory, call: ApplyCall) -> None:
        fire(Failpoint.OPERATOR_BEFORE_APPLY)
        try:
            said = await self._agents.apply(call)
        except AgentError as error:
            log.info(
                "not granted mount=%s/%s reason=%s",
                call.namespace,
                call.mount_name,
                error.reason.value,
            )
            if len(call.shadows) > 1:  # which of them failed, and which are granted?
                await self._ask_what_is_so(memory, call)
            if not memory.are_granted(part.asked):  # else it was only to be told what stands
                now = time.monotonic()
                part.refusal = Refusal(reason=error.reason, message=str(error), at=now)
        else:
            if said.phase is GrantPhase.GRANTED:
                fire(Failpoint.OPERATOR_AFTER_GRANT)
                part.is_measured = True
            memory.answered(said.grants, now=time.monotonic())
        part.applying, part.apply_task = frozenset(), None
        self._wake(call.mount_uid)

    async def _ask_what_is_so(self, memory: Memory, call: ApplyCall) -> None:
        """Take in what the agent has of a mount; one that does not answer says nothing."""
        asked, node = time.monotonic(), call.place.node
        with suppress(AgentError):
            said = [s for s in await self._agents.list(node) if s.mount_uid == call.mount_uid]
            memory.listed(node, [grant for s in said for grant in s.grants], asked=asked)

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
        fire(Failpoint.OPERATOR_BEFORE_REVOKE)
        said = await self._ask_back(memory, call)
        memory.answered(said.grants, now=time.monotonic())
        asked = frozenset(action.shadow_uids) or self._shadows_in(mount_uid, memory, action.place)
        kept = [
            grant
            for grant in said.grants
            if grant.shadow_uid in asked and grant.phase is not GrantPhase.REMOVED
        ]
        if kept or not (said.grants or said.phase is GrantPhase.REMOVED):
            raise Refused(_busy(kept))
        memory.end_applies(asked)
        memory.released.update(asked)
        log.info("released mount_uid=%s node=%s", mount_uid, action.place.node)
        fire(Failpoint.OPERATOR_AFTER_REVOKE)

    async def _ask_back(self, memory: Memory, call: RemoveCall) -> MountGrants:
        """Ask, and note how often that was in vain. Raises AgentError."""
        node = call.place.node
        try:
            async with aside():
                said = await self._agents.remove(call)
        except AgentError as error:
            if error.reason is Reason.AGENT_UNAVAILABLE and not isinstance(error, NoIdentity):
                memory.unheard(node, now=time.monotonic())
            raise
        memory.unanswered.pop(node, None)
        return said

    def discharge(self, mount_uid: str, memory: Memory, action: do.Discharge) -> None:
        """Take note that devices are given back of which no agent says so."""
        asked = frozenset(action.shadow_uids) or self._shadows_in(mount_uid, memory, action.place)
        memory.discharge(asked)
        level = logging.ERROR if action.proof.by is do.By.ADMINISTRATOR else logging.WARNING
        log.log(
            level,
            "released without its agent mount_uid=%s node=%s devices=%r proof=%s: %s",
            mount_uid,
            action.place.node,
            ", ".join(action.devices),
            action.proof.by.value,
            action.proof.text,
        )
        metrics.discharges.add(proof=action.proof.by.value)

    def _shadows_in(self, mount_uid: str, memory: Memory, place: Place) -> frozenset[PodUID]:
        there = (s.uid for s in self._shadows.of(mount_uid) if s.place == place)
        return memory.shadows_in(place).union(there)

    async def delete_shadow_pod(self, mount_uid: str, action: do.DeleteShadowPod) -> None:
        """Delete exactly that pod, at once; one that is gone or another's is as good as deleted."""
        shadow = self._shadows.get(mount_uid, action.uid)
        if shadow is None:
            return
        try:
            await self._cluster.delete_pod(shadow.key, uid=shadow.uid)
        except errors.NotFound:
            pass
        except errors.Conflict:
            if await self._is_there(shadow):
                raise
        fire(Failpoint.OPERATOR_AFTER_DELETE)
        self._shadows.delete(shadow)

    async def delete_mount(self, known: KnownMount) -> None:
        """Delete the object as it was decided on; if it is another by now, look again."""
        uid = known.model.metadata.uid
        raw = (self._mounts.get(uid) or known).raw
        version = raw["metadata"]["resourceVersion"]
        try:
            answer = await self._cluster.delete_mount(known.key, uid=uid, version=version)
        except errors.Conflict:
            answer = await self._cluster.get_mount(known.key)
            if answer["metadata"]["uid"] != uid:
                raise errors.NotFound(f"{known.key} is another object now", status=404) from None
        else:
            log.info("deleted mount=%s/%s: its target is gone", *known.key)
        if answer.get("kind") == KIND and self._mounts.put(answer, now=time.monotonic()):
            self._wake(uid)

    async def _is_there(self, shadow: KnownShadow) -> bool:
        """Ask whether the pod itself, and not another of its name, still exists."""
        try:
            return bool((await self._cluster.get_pod(shadow.key))["metadata"]["uid"] == shadow.uid)
        except errors.NotFound:
            return False

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
                fire(Failpoint.OPERATOR_AFTER_FINALIZER)
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
    errors.ForbiddenBy.LIMITS: Reason.NOT_ALLOWED,
    errors.ForbiddenBy.PRIORITY_GONE: Reason.NOT_ALLOWED,
    errors.ForbiddenBy.PRIORITY_DEFAULT: Reason.NOT_ALLOWED,
    errors.ForbiddenBy.ACCOUNT: Reason.WEBHOOK_UNAVAILABLE,
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
        case errors.RequestTaken():
            reason = Reason.INSUFFICIENT
        case errors.WebhookUnavailable():
            reason = Reason.WEBHOOK_UNAVAILABLE
        case errors.ApiError():
            reason = Reason.API_UNAVAILABLE
        case _:
            raise error
    return Refusal(reason=reason, message=str(error), at=now)
