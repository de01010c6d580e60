# SPDX-License-Identifier: Apache-2.0
"""Processes that keep a device from being given back: who they are, and the sentence about them.

What they are called is theirs to choose: whatever goes into a sentence is cut and made visible.
"""

from typing import Final

from devicemount_operator.decide.decision import TargetReport
from devicemount_operator.decide.observation import (
    Holder,
    Observation,
    PodUID,
    Refusal,
    name_of,
)
from devicemount_operator.decide.text import clip, listing

_IN_A_SENTENCE: Final = 96  # characters of a command or a note; status has more of them


def pod_of(observation: Observation, holder: Holder) -> str:
    """Return the name of the holder's pod if it is ours to know, else its UID; "": the node's.

    What other namespaces call theirs is not told.
    """
    if holder.pod_uid in _target_uids(observation):
        return name_of(observation, PodUID(holder.pod_uid)) or holder.pod_uid
    if holder.pod_name and holder.pod_namespace == observation.mount.metadata.namespace:
        return holder.pod_name
    shadows = {shadow.uid: shadow.name for shadow in observation.ours}
    return shadows.get(PodUID(holder.pod_uid), holder.pod_uid)


def container_of(observation: Observation, target: TargetReport | None, holder: Holder) -> str:
    """Return the name of the holder's container if it is ours to know, else its id."""
    if holder.container and holder.pod_namespace == observation.mount.metadata.namespace:
        return holder.container
    if target is None or target.container is None or holder.container_id != target.container_id:
        return holder.container_id
    return target.container


def sentence(observation: Observation, refusal: Refusal, target: TargetReport | None) -> str:
    """Say how many processes have a device, and which; also whether others could open it still."""
    blocking = [holder for holder in refusal.holders if holder.blocking]
    count = len(blocking) + max(0, refusal.holders_total - len(refusal.holders))
    if not blocking:
        return "a device is still open"
    names = listing([_named(observation, target, holder) for holder in blocking], total=count)
    said = f"{count} {'process has' if count == 1 else 'processes have'} a device open: {names}"
    if refusal.is_revoked:  # which of them are being ended, their notes say
        return f"access is revoked, and {said}"
    if observation.mount.spec.unmount.when_busy == "Terminate":
        return said
    return f"{said}. To have them ended, set spec.unmount.whenBusy to Terminate"


def _named(observation: Observation, target: TargetReport | None, holder: Holder) -> str:
    """Return such as "17 python train.py (container notebook; state D)"."""
    in_target = holder.pod_uid in _target_uids(observation)
    container = clip(container_of(observation, target, holder), 64)
    about = [f"container {container}"] if container else ["a process of the node"]
    if holder.pod_uid and not in_target:
        about.insert(0, f"pod {clip(pod_of(observation, holder), 64)}")
    if holder.note:
        about.append(clip(holder.note, _IN_A_SENTENCE))
    command = clip(holder.command, _IN_A_SENTENCE)
    return f"{holder.pid} {command} ({'; '.join(about)})"


def _target_uids(observation: Observation) -> frozenset[str]:
    shadows = {shadow.place.target_uid for shadow in observation.ours}
    return frozenset(shadows | {grant.place.target_uid for grant in observation.agent.grants})
