# SPDX-License-Identifier: Apache-2.0
"""The target: is the pod there, which of its containers is meant, does it run, can its node graft?

These checks speak only in passes that read the target (`needs_target`); otherwise they have no
opinion.
"""

from typing import Final

from devicemount_agent_api.labels import ENABLED_LABEL, ENABLED_VALUE
from devicemount_operator.api.v1alpha1 import Target
from devicemount_operator.decide import lifetime, outcome, release
from devicemount_operator.decide.decision import Decision, DeleteMount, Event, EventType
from devicemount_operator.decide.fit import fit
from devicemount_operator.decide.observation import (
    ContainerState,
    GrantPhase,
    Observation,
    PodPhase,
    TargetAbsent,
    TargetContainer,
    TargetPod,
    choice,
)
from devicemount_operator.decide.text import listing
from devicemount_operator.reasons import Reason

DELETED_WITH_TARGET: Final = "DeletedWithTarget"
POLL_S: Final = 2.0  # a target that is waited for is read again after this time
LABEL_POLL_S: Final = 5.0  # an agent takes seconds to start once its node has the label
RARE_POLL_S: Final = 15.0  # a target that must be replaced first: nobody waits for the second


def is_gone(observation: Observation) -> bool | None:
    """Say whether the target pod will not run again; None: it was not read in this pass."""
    pod = observation.target
    if pod is None:
        return None
    return isinstance(pod, TargetAbsent) or pod.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)


def outlived(observation: Observation) -> Decision | None:
    """The target that had the devices is gone for good, and the mount is to go with it."""
    gone_s = lifetime.gone_s(observation.mount, steady=observation.steady)
    if not observation.mount.spec.lifetime.delete_with_target or not is_gone(observation):
        return None
    if gone_s is None or gone_s < lifetime.RETURN_S:
        return None
    text = f"pod {observation.mount.spec.target.pod_name} is gone for good"
    text += ", and spec.lifetime.deleteWithTarget is true"
    return Decision(
        actions=(*release.give_back(observation), DeleteMount()),
        events=(Event(EventType.NORMAL, DELETED_WITH_TARGET, text),),
        requeue_after_s=POLL_S,
        setback=observation.setback,
    )


def absent(observation: Observation) -> Decision | None:
    """The target pod does not exist: give back what a former pod of that name had."""
    if not isinstance(observation.target, TargetAbsent):
        return None
    name, namespace = observation.pod_name, observation.mount.metadata.namespace
    fact = f"pod {name} does not exist in namespace {namespace}"
    if not name:
        fact = f"no pod of namespace {namespace} matches spec.target.selector"
    return outcome.waits(
        observation,
        reason=Reason.TARGET_NOT_FOUND,
        fact=fact,
        actions=release.give_back(observation),
        requeue_after_s=POLL_S if name else None,
    )


def finished(observation: Observation) -> Decision | None:
    """The target pod, or the chosen container in it, has ended for good: give back."""
    pod = observation.target
    if not isinstance(pod, TargetPod) or (fact := _end_of(observation, pod)) is None:
        return None
    return outcome.waits(
        observation,
        reason=Reason.TARGET_FINISHED,
        fact=fact,
        actions=release.give_back(observation),
        requeue_after_s=_poll_s(observation),
        target=outcome.bare_target(observation, pod),
    )


def undecided(observation: Observation) -> Decision | None:
    """No container of the target pod is the one that is meant."""
    pod = observation.target
    if not isinstance(pod, TargetPod) or choice(observation.mount.spec.target, pod) is not None:
        return None
    reason, problem = _no_choice(observation.mount.spec.target, pod)
    names = ", ".join(container.name for container in (*pod.containers, *pod.others))
    return outcome.waits(
        observation,
        reason=reason,
        fact=f"pod {pod.name} has {problem}; it has: {names}",
        requeue_after_s=RARE_POLL_S,
        target=outcome.target_of(observation, pod),
    )


def not_running(observation: Observation) -> Decision | None:
    """The target does not run now: wait, and keep what is reserved for it."""
    pod = observation.target
    if not isinstance(pod, TargetPod) or (fact := _pause_of(observation, pod)) is None:
        return None
    return outcome.waits(
        observation,
        reason=Reason.TARGET_NOT_RUNNING,
        fact=fact,
        requeue_after_s=_poll_s(observation),
        target=outcome.target_of(observation, pod),
    )


def without_agent(observation: Observation) -> Decision | None:
    """No agent has an address on the target's node: it is down, or the node is not lent to it."""
    pod = observation.target
    if not isinstance(pod, TargetPod) or pod.node in observation.agent.nodes:
        return None
    disabled = not_enabled(observation)
    return outcome.waits(
        observation,
        reason=Reason.NODE_NOT_ENABLED if disabled else Reason.AGENT_UNAVAILABLE,
        fact=disabled or f"no node agent is ready on node {pod.node}",
        requeue_after_s=LABEL_POLL_S if disabled else POLL_S,
        target=outcome.target_of(observation, pod),
    )


def after_others(observation: Observation) -> Decision | None:
    """Another pod was meant before: what it has is given back before this one gets anything."""
    pod = observation.target
    if not observation.after or not isinstance(pod, TargetPod) or not fit(observation).lacking:
        return None
    return outcome.waits(
        observation,
        reason=Reason.RESERVING,
        fact=f"what pod {listing(observation.after)} has is given back first",
        requeue_after_s=POLL_S,
        target=outcome.target_of(observation, pod),
    )


def not_enabled(observation: Observation) -> str | None:
    """Say that the node that was read has no agent since it lacks the label, and what sets it."""
    node = observation.node
    if node is None or node.is_enabled or node.is_deleted or node.name in observation.agent.nodes:
        return None
    command = f"kubectl label node {node.name} {ENABLED_LABEL}={ENABLED_VALUE} --overwrite"
    return f"no node agent runs on node {node.name}, which is not enabled for it: {command}"


def _poll_s(observation: Observation) -> float:
    """Return when to read the target pod again: of pods that are selected a watch tells."""
    is_named = observation.mount.spec.target.selector is None
    return POLL_S if is_named else RARE_POLL_S


def _no_choice(target: Target, pod: TargetPod) -> tuple[Reason, str]:
    if target.container is not None:
        return Reason.CONTAINER_NOT_FOUND, f"no container {target.container}"
    if pod.default_container is not None:
        default = pod.default_container
        return Reason.CONTAINER_NOT_FOUND, f"no container {default}, its default"
    return Reason.CONTAINER_AMBIGUOUS, "several containers and none is named"


def _end_of(observation: Observation, pod: TargetPod) -> str | None:
    if pod.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED):
        return f"pod {pod.name} has ended ({pod.phase.value})"
    container = choice(observation.mount.spec.target, pod)
    if container is None:
        return None
    if container.state is ContainerState.FINISHED:
        return f"container {container.name} of pod {pod.name} has ended" + _because(container)
    if pod.deleting and _agent_saw_it_end(observation):
        return f"container {container.name} of pod {pod.name} has ended, the pod is being deleted"
    return None


def _pause_of(observation: Observation, pod: TargetPod) -> str | None:
    if pod.deleting:
        return f"pod {pod.name} is being deleted"
    if pod.node is None:
        return f"pod {pod.name} is not scheduled yet"
    container = choice(observation.mount.spec.target, pod)
    if container is None or container.state is ContainerState.RUNNING:
        return None
    return f"container {container.name} of pod {pod.name} does not run" + _because(container)


def _because(container: TargetContainer) -> str:
    return f" ({container.detail})" if container.detail else ""


def _agent_saw_it_end(observation: Observation) -> bool:
    grants = [observation.grant_of(shadow) for shadow in observation.standing]
    return any(grant is not None and grant.phase is GrantPhase.TARGET_ENDED for grant in grants)
