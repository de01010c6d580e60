# SPDX-License-Identifier: Apache-2.0
"""Gathers one frozen Observation: from the caches what they have, from the API server what only it
can say.

Reading costs the API server as much as a write's half, so it is done only where the pass cannot
decide without: the target pod by one GET, the node where a scheduler complains or its agent is
absent, a priority class where one is named, a shadow pod before it is given up. What a node's
profiles say is remembered.
"""

import logging
import time
from dataclasses import replace

from devicemount_operator import errors, pods
from devicemount_operator.agents import AgentError, Agents
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.caches import KnownMount, KnownShadow, Shadows
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide import terms
from devicemount_operator.decide.observation import (
    NodeName,
    NodeView,
    Observation,
    PriorityClass,
    ResourceFacts,
    ShadowPod,
    TargetAbsent,
    TargetPod,
    Turn,
    is_unwanted,
    needs_facts,
    needs_node,
    needs_priority,
    needs_target,
    serialised,
    to_reserve,
    was_not_placed,
)
from devicemount_operator.decide.reservation import is_unguarded
from devicemount_operator.facts import NodeFacts
from devicemount_operator.memory import Memory
from devicemount_operator.settings import Settings
from devicemount_operator.turns import Turns, Wish

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
        settings: Settings,
    ) -> None:
        self._cluster = cluster
        self._agents = agents
        self._facts = facts
        self._turns = turns
        self._shadows = shadows
        self._settings = settings

    def known(self, mount: KnownMount, memory: Memory) -> Observation:
        """Return what is known without asking anybody."""
        memory.prune(shadow.uid for shadow in self._shadows.of(mount.model.metadata.uid))
        return Observation(
            mount=mount.model,
            target=None,
            shadows=self._shadows_of(mount.model),
            node=None,
            facts=None,
            turn=None,
            priority_class=None,
            allowed_annotations=frozenset(self._settings.reservation_annotations),
            agent=memory.agent_view(self._agents.nodes()),
            setback=memory.setback,
            milestones=memory.milestones(seen=mount.seen),
            now=time.monotonic(),
            wall=time.time(),
        )

    async def completed(self, observation: Observation) -> Observation:
        """Return the same with what this pass must read. Raises ApiError, AgentError."""
        observation = await self._confirmed(observation)
        if needs_target(observation):
            observation = replace(observation, target=await self._target(observation))
        if (node := needs_node(observation)) is not None:
            observation = replace(observation, node=await self._node(node))
        if (name := needs_priority(observation)) is not None:
            observation = replace(observation, priority_class=await self._priority_class(name))
        if (node := needs_facts(observation)) is not None:
            observation = await self._with_facts(observation, node)
            observation = replace(observation, turn=self._turn(observation, node))
        return observation

    def _shadows_of(self, mount: DeviceMount) -> tuple[ShadowPod, ...]:
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
        )

    async def _confirmed(self, observation: Observation) -> Observation:
        """Read the shadow pod that seems to have no fence: giving it up ends the device's holders,
        and that a watch fell silent is found out later."""
        mount, shadow = observation.mount, observation.current
        if shadow is None or is_unwanted(mount) or not is_unguarded(observation, shadow):
            return observation
        if (known := self._shadows.get(mount.metadata.uid, shadow.uid)) is not None:
            await self._read(known)
        return replace(observation, shadows=self._shadows_of(mount))

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

    async def _target(self, observation: Observation) -> TargetPod | TargetAbsent:
        mount = observation.mount
        key = ObjectKey(mount.metadata.namespace, mount.spec.target.pod_name)
        try:
            return pods.to_target(await self._cluster.get_pod(key))
        except errors.NotFound:
            return TargetAbsent()

    async def _node(self, name: NodeName) -> NodeView | None:
        try:
            return pods.to_node(await self._cluster.get_node(name))
        except errors.NotFound:
            return None

    async def _priority_class(self, name: str) -> PriorityClass:
        try:
            value = (await self._cluster.get_priority_class(name))["value"]
        except errors.NotFound:
            value = None
        return PriorityClass(name=name, value=value)

    # What nodes say of resources

    async def _with_facts(self, observation: Observation, node: NodeName) -> Observation:
        """A no is said only on facts that are fresh; a mount that waits goes on without any."""
        pod, resources = to_reserve(observation), observation.mount.spec.resources.limits
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

    def _turn(self, observation: Observation, node: NodeName) -> Turn | None:
        """Take the turn, if it is this mount's and nothing else is in its way."""
        slots = frozenset((node, resource) for resource in serialised(observation))
        if not slots:
            return None
        meta, shadow = observation.mount.metadata, observation.current
        created = meta.creation_timestamp.timestamp() if meta.creation_timestamp else 0.0
        rank = (was_not_placed(observation), created, meta.uid)
        wish = Wish(mount_uid=meta.uid, namespace=meta.namespace, rank=rank, slots=slots)
        if shadow is not None:
            return self._turns.standing(wish, since=shadow.seen)
        pod = to_reserve(observation)
        if pod is None or terms.objection(observation, pod) is not None:
            return None
        return self._turns.ask(wish, now=observation.now)
