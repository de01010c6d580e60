# SPDX-License-Identifier: Apache-2.0
"""Gathers one frozen Observation for each target pod: from the caches what they have, from the API
server what only it can say.

Reading costs the API server as much as a write's half, so it is done only where the pass cannot
decide without: the target pod by one GET, the node where a scheduler complains or its agent is
absent, a priority class where one is named, a shadow pod before it is given up. What a node's
profiles say is remembered.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from devicemount_operator import errors, pods, shadow_pod
from devicemount_operator.agents import AgentError, Agents
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.caches import KnownMount, KnownShadow, Shadows
from devicemount_operator.candidates import Candidates
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide import terms
from devicemount_operator.decide.fit import fit
from devicemount_operator.decide.needs import (
    needs_facts,
    needs_node,
    needs_priority,
    needs_target,
    needs_word,
    serialised,
    to_reserve,
    unplaced,
    was_not_placed,
)
from devicemount_operator.decide.observation import (
    GrantPhase,
    NodeName,
    NodeView,
    Observation,
    PodUID,
    PriorityClass,
    ResourceFacts,
    ShadowPod,
    TargetAbsent,
    TargetPod,
    Turn,
    is_unwanted,
)
from devicemount_operator.decide.proof import needs_witness, places
from devicemount_operator.decide.reservation import is_unguarded
from devicemount_operator.decide.split import (
    NAMED,
    Candidate,
    Part,
    Split,
    narrowed,
    narrowed_view,
    split,
)
from devicemount_operator.facts import NodeFacts
from devicemount_operator.memory import Memory
from devicemount_operator.queue import aside
from devicemount_operator.settings import Settings
from devicemount_operator.transport import JsonObject
from devicemount_operator.turns import Turns, Wish, Wisher
from devicemount_operator.witness import Case, Witness

log = logging.getLogger(__name__)


class Observer:
    """Sees one mount at a time."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        agents: Agents,
        facts: NodeFacts,
        turns: Turns,
        shadows: Shadows,
        candidates: Candidates,
        witness: Witness,
        settings: Settings,
    ) -> None:
        self._cluster = cluster
        self._agents = agents
        self._facts = facts
        self._turns = turns
        self._shadows = shadows
        self._candidates = candidates
        self._witness = witness
        self._settings = settings
        self._ahead = time.time() - time.monotonic()

    def split(self, mount: KnownMount, memory: Memory) -> Split | None:
        """Return the target pods of the mount, and what it still has for others; None: it is not
        known yet which pods there are."""
        model, uid = mount.model, mount.model.metadata.uid
        selector, namespace = model.spec.target.selector, model.metadata.namespace
        memory.prune(shadow.uid for shadow in self._shadows.of(uid))
        held = self._held(model, memory)
        candidates: tuple[Candidate, ...] | None = ()
        if selector is None or is_over(model):
            self._candidates.leave(uid)
        else:
            self._candidates.use(namespace, mount_uid=uid, selector=selector)
            candidates = self._candidates.of(namespace)
        if candidates is None:
            return None
        found = split(model, held=held, candidates=candidates)
        self._witness.keep(uid, parts={part.key for part in found.parts})
        return found

    def forget(self, mount_uid: str) -> None:
        """Watch no pods for a mount that is gone."""
        self._candidates.leave(mount_uid)
        self._witness.keep(mount_uid, parts=())

    def known(self, mount: KnownMount, memory: Memory, part: Part) -> Observation:
        """Return what is known of one part without asking anybody."""
        is_only = part.key == NAMED
        mine = memory.part(part.key, now=mount.seen if is_only else time.monotonic())
        view = memory.agent_view(mine, self._agents.nodes())
        return Observation(
            mount=narrowed(mount.model, part),
            pod_name=part.pod_name,
            leaving=part.leaving,
            after=part.after,
            target=None,
            last=None,
            shadows=self._shadows_of(mount.model, part),
            node=None,
            facts=None,
            turn=None,
            priority_class=None,
            allowed_annotations=frozenset(self._settings.reservation_annotations),
            agent=narrowed_view(view, part),
            setback=mine.setback,
            milestones=mine.milestones(),
            now=time.monotonic(),
            wall=time.time(),
            steady=self._steady(),
        )

    def _steady(self) -> float:
        """Return the time that no step of the clock has put forward: never later than it is."""
        return min(time.time(), time.monotonic() + self._ahead)

    async def completed(self, observation: Observation, part: Part, memory: Memory) -> Observation:
        """Return the same with what this pass must read. Raises ApiError, AgentError."""
        observation = await self._confirmed(observation, part)
        if needs_target(observation):
            observation = replace(observation, target=await self._target(observation, part))
        if (node := needs_word(observation)) is not None:
            observation = await self._heard(observation, part, memory, node=node)
        observation = replace(observation, last=self._last(observation, part))
        if (node := needs_node(observation)) is not None:
            observation = replace(observation, node=await self._node(node))
        if (name := needs_priority(observation)) is not None:
            observation = replace(observation, priority_class=await self._priority_class(name))
        if (node := needs_facts(observation)) is not None:
            observation = await self._with_facts(observation, node)
            observation = replace(observation, turn=self._turn(observation, part, node=node))
        return observation

    def _held(self, mount: DeviceMount, memory: Memory) -> Mapping[PodUID, str]:
        """Return for which pods the mount has something or may have, and their names if known."""
        found = {
            PodUID(row.pod_uid): row.pod_name or ""
            for row in mount.status.targets
            if row.shadow_pods and row.node_name
        }
        for grant in memory.grants():
            if grant.phase is not GrantPhase.REMOVED and grant.shadow_uid not in memory.released:
                found.setdefault(grant.place.target_uid, "")
        for shadow in self._shadows.of(mount.metadata.uid):
            uid, raw = shadow.place.target_uid, shadow.raw
            if self._is_ours(raw, mount):
                found[uid] = shadow_pod.target_name_of(raw) or found.get(uid, "")
        return found

    def _is_ours(self, raw: JsonObject, mount: DeviceMount) -> bool:
        """Say so of a shadow pod, and not of what merely has the label, in whatever namespace."""
        is_near = raw["metadata"]["namespace"] == mount.metadata.namespace
        return is_near and shadow_pod.is_ours(raw, mount=mount, image=self._settings.hold_image)

    def _shadows_of(self, mount: DeviceMount, part: Part) -> tuple[ShadowPod, ...]:
        return tuple(
            pods.to_shadow(
                shadow.raw,
                mount=mount,
                image=self._settings.hold_image,
                seen=shadow.seen,
                hold_down_since=shadow.hold_down_since,
            )
            for shadow in self._shadows.of(mount.metadata.uid)
            if shadow.key.namespace == mount.metadata.namespace
            and part.is_about(shadow.place.target_uid)
        )

    async def _confirmed(self, observation: Observation, part: Part) -> Observation:
        """Read a shadow pod that seems to have no fence: giving it up ends the device's holders,
        and that a watch fell silent is found out later."""
        mount = observation.mount
        doubted = [s for s in observation.standing if is_unguarded(observation, s)]
        if not doubted or is_unwanted(observation):
            return observation
        for shadow in doubted:
            if (known := self._shadows.get(mount.metadata.uid, shadow.uid)) is not None:
                await self._read(known)
        return replace(observation, shadows=self._shadows_of(mount, part))

    async def _read(self, known: KnownShadow) -> None:
        """Take in what a shadow pod is now, or that it is gone. Raises ApiError."""
        try:
            raw = await self._cluster.get_pod(known.key)
        except errors.NotFound:
            raw = None
        if raw is not None and raw["metadata"]["uid"] == known.uid:
            self._shadows.put(raw, now=time.monotonic())
        else:
            self._shadows.gone(known.raw)

    async def _heard(
        self, observation: Observation, part: Part, memory: Memory, *, node: NodeName
    ) -> Observation:
        """Have the agent say what of the mount is granted. Raises AgentError."""
        asked, uid = time.monotonic(), observation.mount.metadata.uid
        async with aside():
            said = [mount for mount in await self._agents.list(node) if mount.mount_uid == uid]
        memory.listed(node, [grant for mount in said for grant in mount.grants], asked=asked)
        mine = memory.part(part.key, now=asked)
        view = narrowed_view(memory.agent_view(mine, self._agents.nodes()), part)
        return replace(observation, agent=view)

    async def _target(self, observation: Observation, part: Part) -> TargetPod | TargetAbsent:
        """Read the pod of that name, which for a selector must be the very one that matched."""
        if not part.pod_name:
            return TargetAbsent()
        key = ObjectKey(observation.mount.metadata.namespace, part.pod_name)
        try:
            pod = pods.to_target(await self._cluster.get_pod(key))
        except errors.NotFound:
            return TargetAbsent()
        return pod if part.key in (NAMED, pod.uid) else TargetAbsent()

    def _last(self, observation: Observation, part: Part) -> TargetPod | None:
        """Have the target watched to its end where no agent tells it; return what was seen."""
        meta = observation.mount.metadata
        case = Case(meta.uid, part.key)
        if not needs_witness(observation):
            self._witness.leave(case)
            return None
        pod = observation.target
        if isinstance(pod, TargetPod) and any(p.target_uid == pod.uid for p in places(observation)):
            self._witness.watch(case, ObjectKey(meta.namespace, pod.name), uid=pod.uid)
        return self._witness.last(case)

    async def _node(self, name: NodeName) -> NodeView:
        try:
            return pods.to_node(await self._cluster.get_node(name))
        except errors.NotFound:
            return NodeView(name=name, is_enabled=False, is_deleted=True, allocatable={})

    async def _priority_class(self, name: str) -> PriorityClass:
        try:
            value = (await self._cluster.get_priority_class(name))["value"]
        except errors.NotFound:
            value = None
        return PriorityClass(name=name, value=value)

    # What nodes say of resources

    async def _with_facts(self, observation: Observation, node: NodeName) -> Observation:
        """A no is said only on facts that are fresh; a mount that waits goes on without any."""
        pod, resources = to_reserve(observation), fit(observation).lacking
        if pod is None:
            return replace(observation, facts=await self._explanation(observation, node))
        known = replace(observation, facts=await self._facts.of(node, resources))
        if terms.objection(known, pod) is None:
            return known
        return replace(known, facts=await self._facts.fresh(node, resources))

    async def _explanation(
        self, observation: Observation, node: NodeName
    ) -> tuple[ResourceFacts, ...] | None:
        """Ask what keeps a shadow pod from being placed; no answer explains nothing."""
        resources = observation.mount.spec.resources.limits
        try:
            if observation.node is None:
                return await self._facts.of(node, resources)
            return await self._facts.fresh(node, resources)
        except AgentError as error:
            log.info("a node does not explain why nothing is placed node=%s: %s", node, error)
            return None

    def _turn(self, observation: Observation, part: Part, *, node: NodeName) -> Turn | None:
        """Take the turn, if it is this target pod's and nothing else is in its way."""
        slots = frozenset((node, resource) for resource in serialised(observation))
        if not slots:
            return None
        meta, shadow = observation.mount.metadata, unplaced(observation)
        created = meta.creation_timestamp.timestamp() if meta.creation_timestamp else 0.0
        rank = (was_not_placed(observation), created, meta.uid)
        who = Wisher(meta.uid, part.key)
        wish = Wish(who=who, namespace=meta.namespace, rank=rank, slots=slots)
        if shadow is not None:
            return self._turns.standing(wish, since=shadow.seen)
        pod = to_reserve(observation)
        if pod is None or terms.objection(observation, pod) is not None:
            return None
        return self._turns.ask(wish, now=observation.now)


def is_over(mount: DeviceMount) -> bool:
    """Say whether no pod is a target, whatever its labels: nobody needs to know which there are."""
    return mount.metadata.deletion_timestamp is not None or mount.spec.suspend
