# SPDX-License-Identifier: Apache-2.0
"""What a scheduler decided, where the device plugin then guesses whose call it is.

Such a plugin takes the oldest pod that fits, so two pods at once can be given each other's devices.
One attach at a time per node (the operator's part) does not bind ordinary pods, so the answer must
name the devices that our own pod's annotation names: the pod's as CRI shows it, by the pod's UID.
"""

import asyncio
import re
from fnmatch import fnmatchcase
from typing import Protocol

from devicemount_agent.allocation.said import Subject
from devicemount_agent.container.cri import SandboxFacts
from devicemount_agent.errors import AllocationUnknown, ReservationLost, UnsupportedResource
from devicemount_agent.logs import plain
from devicemount_agent.model import PodUID
from devicemount_agent.profiles.profile import DecidedBy, RefusedWith

POLL_S = 0.02
POLL_LIMIT_S = 0.5
TEXT_LIMIT = 1 << 16


class Sandboxes(Protocol):
    """What is asked of the container runtime."""

    async def sandbox(self, pod_uid: PodUID) -> SandboxFacts | None: ...


async def check(sandboxes: Sandboxes, subject: Subject) -> None:
    """Wait for the pod's sandbox and compare.

    Raises ReservationLost if the answer is another pod's, or cannot be proven to be this one's: a
    sandbox's annotations do not change, so the shadow pod is given back. Raises UnsupportedResource
    where the profile refuses what a scheduler noted in the pod.
    """
    profile = subject.profile
    if profile.decided_by is None and profile.refused_with is None:
        return
    sandbox = await _sandbox(sandboxes, subject.shadow_uid)
    if profile.refused_with is not None:
        _check_served(subject, sandbox, profile.refused_with)
    if profile.decided_by is not None:
        _check_decided(subject, sandbox, profile.decided_by)


def _check_served(subject: Subject, sandbox: SandboxFacts, refused: RefusedWith) -> None:
    for key in sorted(sandbox.annotations):
        if any(fnmatchcase(key, glob) for glob in refused.annotations):
            raise UnsupportedResource(
                f"{subject.resource}: {refused.why}: the shadow pod bears {plain(key, limit=80)}"
            )


def _check_decided(subject: Subject, sandbox: SandboxFacts, decided_by: DecidedBy) -> None:
    decided = decided_in(sandbox, decided_by)
    if not decided:
        raise ReservationLost(
            f"{subject.resource}: the shadow pod bears none of"
            f" {', '.join(decided_by.annotations)}: did its scheduler place it"
            " (reservation.schedulerName)?"
        )
    answered = set(filter(None, subject.answer.envs.get(decided_by.env, "").split(",")))
    if unknown := {a for a in answered if not re.fullmatch(decided_by.pattern, a)}:
        raise AllocationUnknown(
            f"{subject.resource}: the device plugin answered {_listed(unknown)}, which no"
            " annotation of the scheduler can prove to be this pod's"
        )
    if answered != decided:
        raise ReservationLost(
            f"{subject.resource}: the scheduler decided {_listed(decided)} and the device plugin"
            f" answered {_listed(answered)}, which is another pod's: it is given back"
        )
    _check_pod(subject, decided_by)


def _check_pod(subject: Subject, decided_by: DecidedBy) -> None:
    """Two pods may have slices of the same GPU: the directory tells for whom the answer is."""
    directory = decided_by.pod_directory
    if directory is None:
        return
    mounted = [m.host_path for m in subject.answer.mounts if m.container_path == directory]
    if not mounted:
        raise ReservationLost(
            f"{subject.resource}: the device plugin answered without a mount at {directory}, so"
            " nothing tells for which pod: it is given back (podDirectory of profile"
            f" {subject.profile.name})"
        )
    for host_path in mounted:
        if subject.shadow_uid not in host_path:
            raise ReservationLost(
                f"{subject.resource}: the device plugin answered with {host_path}, which"
                " is another pod's: it is given back"
            )


def decided_in(sandbox: SandboxFacts, decided_by: DecidedBy) -> set[str]:
    """Return the ids in the first annotation that names some."""
    for key in decided_by.annotations:
        text = sandbox.annotations.get(key, "")[:TEXT_LIMIT]
        if ids := set(re.findall(decided_by.pattern, text)):
            return ids
    return set()


async def _sandbox(sandboxes: Sandboxes, uid: PodUID) -> SandboxFacts:
    pause_s = POLL_S
    while (sandbox := await sandboxes.sandbox(uid)) is None:
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, POLL_LIMIT_S)
    return sandbox


def _listed(ids: set[str]) -> str:
    return ", ".join(sorted(ids)) or "nothing"
