# SPDX-License-Identifier: Apache-2.0
"""One pass over one mount: observe, decide, act, report. Level-based: never what changed, only what
is.

The error policy is short. What an agent or the API server refuses is decided on once more and
reported (`chain.refused`); a mount that turns out to be gone is an orphan; the loss of the Lease
ends the process. Anything else is a bug: it is logged with its traceback and the key tried again.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from devicemount_operator import errors
from devicemount_operator.act import Actor, Subject, refusal_of
from devicemount_operator.agents import AgentError
from devicemount_operator.api.v1alpha1 import API_VERSION, KIND
from devicemount_operator.caches import KnownMount, Mounts, Shadows
from devicemount_operator.cluster import Cluster
from devicemount_operator.decide import chain, happened, report
from devicemount_operator.decide.decision import Decision, Event
from devicemount_operator.decide.observation import Refusal
from devicemount_operator.memory import Memories, Memory
from devicemount_operator.observe import Observer
from devicemount_operator.orphans import Orphans
from devicemount_operator.reasons import Reason
from devicemount_operator.recorder import About, Recorder
from devicemount_operator.turns import Turns

log = logging.getLogger(__name__)

ORPHAN_RETRY_S = 5.0
REPORT_RETRY_S = 1.0
AFTER_BUG_S = 30.0


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

    async def reconcile(self, mount_uid: str) -> None:
        """Do one pass, whatever comes of it."""
        try:
            known = self._mounts.get(mount_uid)
            if known is None:
                await self._orphan(mount_uid)
            else:
                await self._mount(known, self._memories.of(mount_uid))
        except errors.LeaseLost as lost:
            log.error("stopped in the middle of a pass mount_uid=%s: %s", mount_uid, lost)
            self._again(mount_uid, REPORT_RETRY_S)  # in case the Lease is renewed late after all
        except errors.NotFound:
            self._mounts.drop(mount_uid)
            self._again(mount_uid, 0.0)
        except errors.ApiError as error:
            log.warning("could not report mount_uid=%s: %s", mount_uid, error)
            self._again(mount_uid, REPORT_RETRY_S)
        except Exception:
            log.exception("a pass failed mount_uid=%s", mount_uid)
            self._again(mount_uid, AFTER_BUG_S)
        finally:
            self._turns.settle(mount_uid)

    async def _mount(self, known: KnownMount, memory: Memory) -> None:
        subject = Subject(known, memory, self._observer.known(known, memory))
        decision = await self._decide(subject)
        refusal = await self._actor.carry_out(subject, decision.actions)
        if refusal is not None:
            if refusal.reason is Reason.API_UNAVAILABLE:
                self._turns.doubt(subject.uid)
            decision = self._refused(subject, refusal)
        memory.setback = decision.setback
        told, news = happened.tell(subject.observation, memory.told)
        await self._tell(subject, decision, news)
        memory.told = told
        if decision.requeue_after_s is not None:
            self._again(subject.uid, decision.requeue_after_s)

    async def _decide(self, subject: Subject) -> Decision:
        try:
            subject.observation = await self._observer.completed(subject.observation)
        except (errors.ApiError, AgentError) as error:
            return self._refused(subject, refusal_of(error, now=time.monotonic()))
        return chain.decide(subject.observation)

    def _refused(self, subject: Subject, refusal: Refusal) -> Decision:
        """Decide again, with what the actions before the refused one have changed."""
        read = subject.observation
        now = self._observer.known(subject.known, subject.memory)
        subject.observation = replace(
            now, target=read.target, node=read.node, facts=read.facts, turn=read.turn
        )
        return chain.refused(subject.observation, refusal)

    async def _tell(self, subject: Subject, decision: Decision, news: tuple[Event, ...]) -> None:
        """Write status if it says something new, then the Events."""
        events = (*decision.events, *news)
        if decision.report is not None:
            rendered = report.render(subject.observation, decision.report)
            events = happened.without_repetition(rendered.events, events)
            if rendered.status is not None:
                answer = await self._cluster.patch_status(
                    subject.known.key, uid=subject.uid, status=rendered.status
                )
                if self._mounts.put(answer, now=time.monotonic()):
                    self._again(subject.uid, 0.0)  # it says more than we wrote; no event will
        about = About(API_VERSION, KIND, *subject.known.key, subject.uid)
        for event in events:
            await self._recorder.record(
                about, kind=event.type.value, reason=event.reason, message=event.message
            )

    async def _orphan(self, mount_uid: str) -> None:
        memory = self._memories.of(mount_uid)
        memory.end_apply()
        if not await self._orphans.release(mount_uid, memory):
            self._again(mount_uid, ORPHAN_RETRY_S)
        elif memory.is_empty():
            self._memories.forget(mount_uid)
