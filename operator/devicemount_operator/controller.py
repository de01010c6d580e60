# SPDX-License-Identifier: Apache-2.0
"""Puts the parts together and keeps them running while this process leads.

Order is what makes it safe: own LISTs of DeviceMounts, shadow pods and agents first, then what the
agents say, and only then the first pass, which is also the sweep: every DeviceMount and every UID
that a shadow pod names is looked at once. The first part that ends, ends all of them.
"""

import asyncio
import logging
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass

from devicemount_operator import errors, metrics, shell
from devicemount_operator.act import Actor
from devicemount_operator.agent_pods import AgentPods
from devicemount_operator.agents import Agents, Deadlines
from devicemount_operator.caches import Mounts, Shadows
from devicemount_operator.candidates import Candidates
from devicemount_operator.certificates import Keeper, Mounted, Own, Source
from devicemount_operator.cluster import Cluster, agent_pods, shadow_pods
from devicemount_operator.election import Election, Epoch
from devicemount_operator.facts import NodeFacts
from devicemount_operator.hearing import Hearing
from devicemount_operator.memory import Memories
from devicemount_operator.observe import Observer
from devicemount_operator.orphans import Orphans
from devicemount_operator.packing import version_of
from devicemount_operator.polling import Pace, Poller
from devicemount_operator.queue import WorkQueue
from devicemount_operator.reconciler import Reconciler
from devicemount_operator.recorder import Recorder
from devicemount_operator.reflector import Changed, Listed, Reflector, Selection
from devicemount_operator.settings import Settings
from devicemount_operator.transport import JsonObject, Transport, sleep_for
from devicemount_operator.turns import Turns
from devicemount_operator.witness import Witness

log = logging.getLogger(__name__)

FIRST_LIST_S = 3.0  # the first passes wait no longer for what agents say: they can ask again
CRD_RETRY_S = 2.0
STALE_WATCH_S = 300.0  # four times what a silent stream is given before it is opened again


@dataclass(slots=True)
class Health:
    """What the probes are answered with; a controller fills it in."""

    election: Election
    controller: "Controller | None" = None

    def live(self) -> str:
        """Say what is wrong: a standby is fine."""
        return "" if self.controller is None else self.controller.stale()

    def ready(self) -> str:
        """Say what is missing: to a standby, nothing, if it could take over."""
        if self.controller is None:
            return self.election.amiss()
        return self.controller.amiss()


class Controller:
    """Everything that runs while this process holds the Lease."""

    def __init__(
        self,
        *,
        transport: Transport,
        settings: Settings,
        election: Election,
        epoch: Epoch,
        stop: asyncio.Event,
    ) -> None:
        self.synced = False
        self._transport = transport
        self._settings = settings
        self._election = election
        self._cluster = Cluster(
            transport, timeout_s=settings.request_timeout_s, left_s=election.left_s
        )
        self._mounts = Mounts()
        self._shadows = Shadows()
        self._memories = Memories()
        self._candidates = Candidates(reflector=self._reflector, wake=self._wake)
        self._witness = Witness(reflector=self._reflector, wake=self._wake)
        self._hearing = Hearing()
        self._stop = stop
        self._listed = {name: asyncio.Event() for name in ("shadow pods", "agents")}
        self._agents = Agents(
            epoch=epoch,
            port=settings.agent_port,
            deadlines=Deadlines(
                apply_s=settings.apply_timeout_s,
                remove_s=settings.remove_timeout_s,
                list_s=settings.list_timeout_s,
            ),
        )
        self._certificates = Keeper(
            source=self._certificate_source(),
            agents=self._agents,
            interval_s=settings.certificates_s,
        )
        self._agent_pods = AgentPods(self._agents)
        self._facts = NodeFacts(self._agents)
        self._queue: WorkQueue[str] = WorkQueue(
            self._reconciler().reconcile, workers=settings.workers, group_of=self._namespace_of
        )
        self._poller = Poller(
            agents=self._agents,
            memories=self._memories,
            pace=Pace(poll_s=settings.agent_poll_s, check_s=settings.agent_check_s),
            wake=self._wake,
        )
        self._streams = {
            "shadow pods": self._reflector(shadow_pods()),
            "agents": self._reflector(agent_pods(settings.namespace)),
        }

    def stale(self) -> str:
        """Say which watch has shown no sign of life for too long.

        Not those of pods that selectors mean: what a tenant does with a namespace ends no process.
        """
        now = time.monotonic()
        dead = [
            name
            for name, stream in self._streams.items()
            if now - stream.last_heard > STALE_WATCH_S
        ]
        if dead:
            return f"no sign of life from the watch of {', '.join(dead)}"
        missed = self._hearing.missed(now=now)
        return f"the watch of DeviceMounts has not told of {missed} that changed" if missed else ""

    def amiss(self) -> str:
        """Say what keeps this from working as it should."""
        return self._certificates.amiss() if self.synced else "reading what exists"

    def _show_figures(self) -> None:
        """Let /metrics ask what only the leader knows."""
        metrics.gauges(
            "devicemount_mounts",
            "DeviceMounts, by the reason of their condition Ready.",
            "reason",
            self._mounts.reasons,
        )
        metrics.gauge(
            "devicemount_queue_depth",
            "DeviceMounts that are due to be looked at.",
            self._queue.depth,
        )

    async def run(self) -> None:
        """Work until told to stop (returns) or until something essential ends (raises it)."""
        work = (
            self._election.renew(),
            self._certificates.run(),
            self._follow_shadows(),
            self._follow_agents(),
            self._follow_mounts(),
            self._poller.run(),
            self._candidates.run(),
            self._resync(),
        )
        self._show_figures()
        try:
            async with asyncio.TaskGroup() as parts:
                tasks = [parts.create_task(part) for part in work]
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await self._queue.close()
            await self._witness.close()
            await self._facts.close()
            await self._memories.close()
            await self._agents.close()

    def _certificate_source(self) -> Source:
        """Where somebody mounts certificates, these; else our own."""
        if self._settings.tls_directory.is_dir():
            return Mounted(self._settings.tls_directory)
        return Own(
            cluster=self._cluster,
            agents=self._agents,
            namespace=self._settings.namespace,
            agents_listed=self._listed["agents"],
        )

    def _reconciler(self) -> Reconciler:
        settings, cluster = self._settings, self._cluster
        actor = Actor(
            cluster=cluster,
            agents=self._agents,
            mounts=self._mounts,
            shadows=self._shadows,
            settings=settings,
            wake=self._wake,
        )
        turns = Turns(shadows=self._shadows, memories=self._memories, wake=self._wake)
        recorder = Recorder(cluster, identity=settings.identity)
        return Reconciler(
            cluster=cluster,
            mounts=self._mounts,
            shadows=self._shadows,
            memories=self._memories,
            observer=Observer(
                cluster=cluster,
                agents=self._agents,
                facts=self._facts,
                turns=turns,
                shadows=self._shadows,
                candidates=self._candidates,
                witness=self._witness,
                settings=settings,
            ),
            actor=actor,
            orphans=Orphans(
                cluster=cluster,
                actor=actor,
                shadows=self._shadows,
                recorder=recorder,
                hold_image=settings.hold_image,
                found=self._mount_changed,
            ),
            recorder=recorder,
            turns=turns,
            again=self._again,
        )

    def _wake(self, mount_uid: str) -> None:
        self._queue.add(mount_uid)

    def _again(self, mount_uid: str, delay_s: float) -> None:
        self._queue.add_after(mount_uid, delay_s=delay_s)

    def _namespace_of(self, mount_uid: str) -> str:
        """Return whose turn it is when that mount is looked at; "": of one that is gone."""
        return self._mounts.namespace_of(mount_uid) or ""

    # Start

    async def _sync(self) -> None:
        """Return when everything that exists is known and has been queued."""
        await self._list_mounts()
        for listed in self._listed.values():
            await listed.wait()
        await self._certificates.looked.wait()
        nodes = self._agents.nodes()
        try:
            async with asyncio.timeout(FIRST_LIST_S):
                await asyncio.gather(*(self._poller.ask(node) for node in nodes))
        except TimeoutError:
            log.warning("some agents do not answer; going on without")
        for uid in (*self._mounts.uids(), *self._shadows.mounts(), *self._memories.uids()):
            self._wake(uid)
        self._queue.open()
        self.synced = True
        log.info("synced mounts=%d agents=%d", len(self._mounts.uids()), len(nodes))

    async def _list_mounts(self) -> None:
        """Wait for the first LIST of DeviceMounts: the CRD may come later."""
        while True:
            try:
                self._mounts.replace_all(await self._cluster.list_mounts(), now=time.monotonic())
            except errors.ApiError as error:
                log.warning("cannot list DeviceMounts yet: %s", error)
                await sleep_for(error, otherwise_s=CRD_RETRY_S)
            else:
                return

    # What the watches say

    async def _follow_shadows(self) -> None:
        async for event in self._streams["shadow pods"].events():
            now = time.monotonic()
            match event:
                case Listed():
                    changed: Iterable[str | None] = self._shadows.replace_all(event, now=now)
                case Changed(raw, deleted=True):
                    changed = (self._shadows.gone(raw),)
                case Changed(raw):
                    changed = (self._shadows.put(raw, now=now),)
            for uid in changed:
                if uid is not None:
                    self._wake(uid)
            self._listed["shadow pods"].set()

    async def _follow_agents(self) -> None:
        async for event in self._streams["agents"].events():
            await self._agent_pods.take(event)
            self._listed["agents"].set()

    async def _follow_mounts(self) -> None:
        """Read what exists, then have kopf watch. It takes our signals, so its end is ours."""
        await self._sync()
        await shell.watch(
            self._transport.access,
            changed=self._mount_told,
            deleted=self._mount_deleted,
            stop=self._stop,
        )
        self._stop.set()

    def _mount_told(self, raw: JsonObject) -> None:
        self._hearing.told(raw)
        self._mount_changed(raw)

    def _mount_changed(self, raw: JsonObject) -> None:
        if self._mounts.put(raw, now=time.monotonic()):
            self._wake(raw["metadata"]["uid"])

    def _mount_deleted(self, raw: JsonObject) -> None:
        """Look once more: without our finalizer it may have left a shadow pod behind."""
        uid = raw["metadata"]["uid"]
        self._hearing.gone(uid)
        self._mounts.gone(uid, version=version_of(raw))
        self._wake(uid)

    async def _resync(self) -> None:
        """List again what a watch may have lost, a deletion above all, and look at every mount.

        What has not changed has its turn at some time before the next LIST.
        """
        while True:
            await asyncio.sleep(self._settings.resync_s)
            try:
                listed = await self._cluster.list_mounts()
            except errors.ApiError as error:
                log.warning("could not list DeviceMounts again: %s", error)
                continue
            now = time.monotonic()
            self._hearing.compare(listed, now=now)
            for uid in self._mounts.replace_all(listed, now=now):
                self._wake(uid)
            for uid in self._mounts.uids():
                delay_s = random.uniform(0, self._settings.resync_s)  # noqa: S311 (no secret)
                self._queue.add_after(uid, delay_s=delay_s)

    def _reflector(self, selection: Selection) -> Reflector:
        def failed(error: errors.ApiError) -> None:
            log.warning("a watch broke path=%s error=%s", selection.path, error)

        return Reflector(
            self._transport, selection, timeout_s=self._settings.request_timeout_s, failed=failed
        )
