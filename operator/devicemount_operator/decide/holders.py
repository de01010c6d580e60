# SPDX-License-Identifier: Apache-2.0
"""Processes that keep a device from being given back: who they are, and the sentence about them.

What they are called is theirs to choose: whatever goes into a sentence is cut and made visible.
"""

from collections.abc import Iterator
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
_MAIN: Final = "main process"  # an agent's note says so of one that is spared
_FOREIGN: Final = "another pod"  # and so of one that is not ended either
_UNKNOWN: Final = "may have it: "  # and so of one of whom nobody knows it, which is not ended
_HANDED_ON: Final = "another may have it"  # and so of one that has ended
_MOUNTED: Final = "file system mounted"  # and so of one that has no descriptor of the device


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
    has = "process has" if count == 1 else "processes have"
    if any(_is_unsure(holder.note) for holder in blocking):
        has = f"{has} or may have"
    said = f"{count} {has} a device open: {names}"
    if refusal.is_revoked:  # which of them are being ended, their notes say
        said = f"access is revoked, and {said}"
    ways = " or, ".join(_ways_out(observation, refusal))
    return f"{said}. {ways[0].upper()}{ways[1:]}" if ways else said


def is_ending(refusal: Refusal) -> bool:
    """Say whether the agent ends who is left; those it had no room to name may be such."""
    blocking = [holder for holder in refusal.holders if holder.blocking]
    if not blocking or refusal.holders_total > len(refusal.holders):
        return refusal.is_revoked
    kept = (_MAIN, _FOREIGN, _UNKNOWN)
    return refusal.is_revoked and any(
        not any(mark in holder.note for mark in kept) for holder in blocking
    )


def _is_unsure(note: str) -> bool:
    return _UNKNOWN in note or _HANDED_ON in note


def _ways_out(observation: Observation, refusal: Refusal) -> Iterator[str]:
    """Yield what can be done about those who have a device, besides waiting for them."""
    unmount = observation.mount.spec.unmount
    notes = [holder.note for holder in refusal.holders if holder.blocking]
    if any(_MOUNTED in note for note in notes):
        yield "umount the device's file system"
    if unmount.when_busy == "Wait":
        if not refusal.is_revoked and not all(map(_is_unsure, notes)):
            yield "to have them ended, set spec.unmount.whenBusy to Terminate"
    elif not unmount.include_main_process and any(_MAIN in note for note in notes):
        yield "to have the main process ended too, set spec.unmount.includeMainProcess to true"


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
