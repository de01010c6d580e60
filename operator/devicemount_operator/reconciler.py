# SPDX-License-Identifier: Apache-2.0
"""One pass over one mount: for each target pod observe, decide, act; then one report. Level-based:
never what changed, only what is.

The error policy is short. What an agent or the API server refuses is decided on once more and
reported (`chain.refused`); a mount that turns out to be gone is an orphan; the loss of the Lease
ends the process. Anything else is a bug: it is logged with its traceback and the key tried again.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from devicemount_agent_api.failpoints import Failpoint, fire
from devicemount_operator import errors, metrics
from devicemount_operator.act import Actor, Subject, refusal_of
from devicemount_operator.agents import AgentError
from devicemount_operator.api.v1alpha1 import API_VERSION, KIND
from devicemount_operator.caches import KnownMount, Mounts, Shadows
from devicemount_operator.cluster import Cluster
from devicemount_operator.decide import chain, happened, merge
from devicemount_operator.decide.decision import (
    Action,
    AddFinalizer,
    Decision,
    DropFinalizer,
)
from devicemount_operator.decide.merge import Voice
from devicemount_operator.decide.observation import Refusal
from devicemount_operator.decide.split import Part, Split
from devicemount_operator.memory import Memories, Memory
from devicemount_operator.observe import Observer
from devicemount_operator.orphans import Orphans
from devicemount_operator.reasons import Reason
from devicemount_operator.recorder import About, Recorder
from devicemount_operator.retries import Retries
from devicemount_operator.turns import Turns, Wisher

log = logging.getLogger(__name__)

ORPHAN_RETRY_S = 5.0
OF_MOUNT: Final = (AddFinalizer, DropFinalizer)  # once, however many target pods ask for it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one target pod's part of a pass."""

    subject: Subject
    decision: Decision
    of_mount: tuple[Action, ...]  # left to be done when all others are done
    is_refused: bool = False


class Reconciler:
    """Holds what a pass needs; every pass stands alone."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        mounts: Mounts,
        shadows: Shadows,
        memories: Memories,
        observer: Observer,
        actor: Actor,
        orphans: Orphans,
        recorder: Recorder,
        turns: Turns,
        again: Callable[[str, float], None],
    ) -> None:
        self._cluster = cluster
        self._mounts = mounts
        self._shadows = shadows
        self._memories = memories
        self._observer = observer
        self._actor = actor
        self._orphans = orphans
        self._recorder = recorder
        self._turns = turns
        self._again = again
        self._retries = Retries()

    async def reconcile(self, mount_uid: str) -> None:
        """Do one pass, whatever comes of it."""
        began = time.monotonic()
        try:
            known = self._mounts.get(mount_uid)
            if known is None:
                await self._orphan(mount_uid)
            else:
                await self._mount(known, self._memories.of(mount_uid))
        except errors.NotFound:
            self._mounts.drop(mount_uid)
            self._again(mount_uid, 0.0)
        except errors.LeaseLost as lost:
            log.error("stopped in the middle of a pass mount_uid=%s: %s", mount_uid, lost)
            self._failed(mount_uid, lost)  # in case the Lease is renewed late after all
        except errors.ApiError as error:
            log.warning("could not report mount_uid=%s: %s", mount_uid, error)
            self._failed(mount_uid, error)
        except Exception as error:
            log.exception("a pass failed mount_uid=%s", mount_uid)
            self._failed(mount_uid, error)
        else:
            self._retries.over(mount_uid)
        finally:
            metrics.reconcile_seconds.observe(time.monotonic() - began)
            self._turns.settle(mount_uid)

    def _failed(self, mount_uid: str, error: Exception) -> None:
        metrics.failures.add(error=type(error).__name__)
        self._again(mount_uid, self._retries.pause_s(mount_uid, error))

    async def _mount(self, known: KnownMount, memory: Memory) -> None:
        """Do a pass over every target pod, each by itself, then tell of all of them at once."""
        found = self._observer.split(known, memory)
        if found is None:
            return  # who knows which pods there are wakes it
        memory.forget_parts(part.key for part in found.parts)
        outcomes = await self._all(known, memory, [p for p in found.parts if not p.after])
        kept = {o.subject.part.pod_name for o in outcomes if o.is_refused}
        later = [
            replace(part, after=tuple(name for name in part.after if name in kept))
            for part in found.parts
            if part.after
        ]
        outcomes += await self._all(known, memory, later)
        outcomes.sort(
            key=lambda outcome: bool(outcome.subject.part.leaving)
        )  # rows of targets first
        await self._write_finalizer(outcomes)
        await self._tell(known, found, outcomes)
        pauses = [o.decision.requeue_after_s for o in outcomes]
        for pause_s in pauses:
            if pause_s is not None:
                self._again(outcomes[0].subject.uid, pause_s)

    async def _all(self, known: KnownMount, memory: Memory, parts: list[Part]) -> list[Outcome]:
        """Decide and act, at the same time: none waits for an agent that is another's.

        Raises the first error once all have ended.
        """
        subjects = [
            Subject(known, memory, part, self._observer.known(known, memory, part))
            for part in parts
        ]
        done = await asyncio.gather(*map(self._one, subjects), return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in done if isinstance(outcome, Outcome)]

    async def _one(self, subject: Subject) -> Outcome:
        try:
            subject.observation = await self._observer.completed(
                subject.observation, subject.part, subject.memory
            )
        except (errors.ApiError, AgentError) as error:
            return self._refused(subject, refusal_of(error, now=time.monotonic()))
        decision = chain.decide(subject.observation)
        of_target = tuple(a for a in decision.actions if not isinstance(a, OF_MOUNT))
        of_mount = tuple(a for a in decision.actions if isinstance(a, OF_MOUNT))
        refusal = await self._actor.carry_out(subject, of_target)
        if refusal is not None:
            if refusal.reason is Reason.API_UNAVAILABLE:
                self._turns.doubt(Wisher(subject.uid, subject.part.key))
            return self._refused(subject, refusal, of_mount)
        subject.part_memory.setback = decision.setback
        return Outcome(subject, decision, of_mount)

    def _refused(
        self, subject: Subject, refusal: Refusal, of_mount: tuple[Action, ...] = ()
    ) -> Outcome:
        """Decide again, with what the actions before the refused one have changed."""
        read = subject.observation
        now = self._observer.known(subject.known, subject.memory, subject.part)
        subject.observation = replace(
            now,
            target=read.target,
            last=read.last,
            node=read.node,
            facts=read.facts,
            turn=read.turn,
        )
        decision = chain.refused(subject.observation, refusal)
        subject.part_memory.setback = decision.setback
        return Outcome(subject, decision, of_mount, is_refused=True)

    async def _write_finalizer(self, outcomes: list[Outcome]) -> None:
        """Set the mount's finalizer, or take it off when no target pod keeps anything back."""
        first = outcomes[0]
        actions: tuple[Action, ...] = ()
        if all(DropFinalizer() in o.of_mount and not o.is_refused for o in outcomes):
            actions = (DropFinalizer(),)
        elif any(AddFinalizer() in outcome.of_mount for outcome in outcomes):
            actions = (AddFinalizer(),) if self._shadows.of(first.subject.uid) else ()
        refusal = await self._actor.carry_out(first.subject, actions)
        if refusal is not None:
            outcomes[0] = self._refused(first.subject, refusal)

    async def _tell(self, known: KnownMount, found: Split, outcomes: list[Outcome]) -> None:
        """Write status if it says something new, then the Events."""
        uid = known.model.metadata.uid
        told = [happened.tell(o.subject.observation, o.subject.part_memory.told) for o in outcomes]
        news = tuple(event for _, events in told for event in events)
        voices = tuple(
            Voice(o.subject.part, o.subject.observation, o.decision.report) for o in outcomes
        )
        rendered = merge.render(known.model, voices, left_out=found.left_out)
        events = (*rendered.events, *(e for o in outcomes for e in o.decision.events))
        if rendered.status is not None:
            answer = await self._cluster.patch_status(known.key, uid=uid, status=rendered.status)
            fire(Failpoint.OPERATOR_AFTER_STATUS)
            if self._mounts.put(answer, now=time.monotonic()):
                self._again(uid, 0.0)  # it says more than we wrote; no event will
        about = About(API_VERSION, KIND, *known.key, uid)
        for event in happened.without_repetition(events, news):
            await self._recorder.record(
                about, kind=event.type.value, reason=event.reason, message=event.message
            )
        for outcome, (now_told, _) in zip(outcomes, told, strict=True):
            outcome.subject.part_memory.told = now_told

    async def _orphan(self, mount_uid: str) -> None:
        memory = self._memories.of(mount_uid)
        memory.forget_parts(())
        self._observer.forget(mount_uid)
        if not await self._orphans.release(mount_uid, memory):
            self._again(mount_uid, ORPHAN_RETRY_S)
        elif memory.is_empty():
            self._memories.forget(mount_uid)
