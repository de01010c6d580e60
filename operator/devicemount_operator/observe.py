# SPDX-License-Identifier: Apache-2.0
"""Gathers one frozen Observation: from the caches what they have, from the API server what only it
can say.

Reading costs the API server as much as a write's half, so it is done only where the pass cannot
decide without: the target pod by one GET, the node where a scheduler complains.
"""

import time
from dataclasses import replace

from devicemount_operator import errors, pods
from devicemount_operator.agents import Agents
from devicemount_operator.caches import KnownMount, Shadows
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide.observation import (
    NodeResources,
    Observation,
    TargetAbsent,
    TargetPod,
    needs_node,
    needs_target,
)
from devicemount_operator.memory import Memory


class Observer:
    """Sees one mount at a time."""

    def __init__(
        self, *, cluster: Cluster, agents: Agents, shadows: Shadows, hold_image: str
    ) -> None:
        self._cluster = cluster
        self._agents = agents
        self._shadows = shadows
        self._hold_image = hold_image

    def known(self, mount: KnownMount, memory: Memory) -> Observation:
        """Return what is known without asking anybody."""
        shadows = self._shadows.of(mount.model.metadata.uid)
        memory.prune(shadow.uid for shadow in shadows)
        return Observation(
            mount=mount.model,
            target=None,
            shadows=tuple(
                pods.to_shadow(
                    shadow.raw,
                    mount=mount.model,
                    image=self._hold_image,
                    seen=shadow.seen,
                    hold_down_since=shadow.hold_down_since,
                )
                for shadow in shadows
                if shadow.key.namespace == mount.key.namespace
            ),
            node=None,
            agent=memory.agent_view(self._agents.nodes()),
            setback=memory.setback,
            milestones=memory.milestones(seen=mount.seen),
            now=time.monotonic(),
            wall=time.time(),
        )

    async def completed(self, observation: Observation) -> Observation:
        """Return the same with what this pass must read. Raises ApiError."""
        if needs_target(observation):
            observation = replace(observation, target=await self._target(observation))
        if needs_node(observation):
            observation = replace(observation, node=await self._node(observation))
        return observation

    async def _target(self, observation: Observation) -> TargetPod | TargetAbsent:
        mount = observation.mount
        key = ObjectKey(mount.metadata.namespace, mount.spec.target.pod_name)
        try:
            return pods.to_target(await self._cluster.get_pod(key))
        except errors.NotFound:
            return TargetAbsent()

    async def _node(self, observation: Observation) -> NodeResources | None:
        shadow = observation.current
        if shadow is None or not shadow.place.node:
            return None
        try:
            return pods.to_node(await self._cluster.get_node(shadow.place.node))
        except errors.NotFound:
            return None
