# SPDX-License-Identifier: Apache-2.0
"""The one table of reasons: what each means, whether it ends by itself, what to do, how often to
try again.

A reason is the `reason` of condition Ready (or Degraded), the class name of the error behind it and
the label of metrics. A message is what is so in this case (made by the check that found it) and
then the advice of this table. `python -m devicemount_operator.reasons > docs/reasons.md` makes the
page.
"""

import sys
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Reason(Enum):
    """Why a mount is as it is."""

    MOUNTED = "Mounted"
    SUSPENDED = "Suspended"
    EXPIRED = "Expired"
    RESERVING = "Reserving"
    GRAFTING = "Grafting"
    TARGET_NOT_FOUND = "TargetNotFound"
    TARGET_NOT_RUNNING = "TargetNotRunning"
    TARGET_FINISHED = "TargetFinished"
    CONTAINER_MISMATCH = "ContainerMismatch"
    INSUFFICIENT = "Insufficient"
    RESOURCE_UNKNOWN = "ResourceUnknown"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    DRIVER_MISSING = "DriverMissing"
    NODE_NOT_ENABLED = "NodeNotEnabled"
    AGENT_UNAVAILABLE = "AgentUnavailable"
    API_UNAVAILABLE = "ApiUnavailable"
    WEBHOOK_UNAVAILABLE = "WebhookUnavailable"
    NODE_DRAINING = "NodeDraining"
    NAMESPACE_TERMINATING = "NamespaceTerminating"
    SHADOW_NOT_RUNNING = "ShadowNotRunning"
    ALLOCATION_UNKNOWN = "AllocationUnknown"
    DEVICE_BUSY = "DeviceBusy"
    RESERVATION_LOST = "ReservationLost"
    STALE_REQUEST = "StaleRequest"
    STILL_RESERVED = "StillReserved"
    SHRINK_NOT_POSSIBLE = "ShrinkNotPossible"
    CONTAINER_NOT_FOUND = "ContainerNotFound"
    CONTAINER_AMBIGUOUS = "ContainerAmbiguous"
    NOT_ALLOWED = "NotAllowed"
    RESERVATION_NOT_ALLOWED = "ReservationNotAllowed"
    UNSUPPORTED_RESOURCE = "UnsupportedResource"
    ENV_FILE_NEEDED = "EnvFileNeeded"
    ALLOCATED_BY_DRA = "AllocatedByDRA"
    PATH_CONFLICT = "PathConflict"
    UNSUPPORTED_RUNTIME = "UnsupportedRuntime"
    FILTER_BLOCKED = "FilterBlocked"
    LIBRARIES_MISSING = "LibrariesMissing"
    VERSION_MISMATCH = "VersionMismatch"
    DEVICE_UNHEALTHY = "DeviceUnhealthy"
    NOT_PERMITTED = "NotPermitted"
    NOT_ISOLATED = "NotIsolated"


class Kind(Enum):
    """What a reason says about the future; kstatus, Flux and Argo CD are told by conditions."""

    READY = "ready"
    SUSPENDED = "suspended"
    WAITING = "waiting"  # ends by itself: Reconciling=True
    PERMANENT = "permanent"  # until the object, its target or a policy changes: Stalled=True
    DEGRADED = "degraded"  # ready, and yet something is amiss: Degraded=True
    NOTE = "note"  # ready as it is meant to be; the message of Ready says it


@dataclass(frozen=True, slots=True)
class Pace:
    """How attempts are spread out: the first pause, doubled each time, never above the last."""

    first_s: float
    last_s: float

    def pause_s(self, failures: int) -> float:
        """Return the pause after so many failures in a row (1 or more)."""
        return float(min(self.last_s, self.first_s * 2 ** min(failures - 1, 16)))


QUICK: Final = Pace(0.5, 5.0)  # costs one call to an agent
PATIENT: Final = Pace(1.0, 15.0)  # the same, for what others are to bring
RESERVATION: Final = Pace(2.0, 50.0)  # costs a pod: ten in five minutes
SLOW: Final = Pace(10.0, 300.0)  # costs a pod, and nothing is likely to have changed


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table."""

    kind: Kind
    meaning: str
    advice: str  # ends the message; empty where there is nothing to say
    pace: Pace = QUICK


def _waiting(meaning: str, advice: str, pace: Pace = QUICK) -> Entry:
    return Entry(Kind.WAITING, meaning, advice, pace)


def _permanent(meaning: str, advice: str, pace: Pace = SLOW) -> Entry:
    return Entry(Kind.PERMANENT, meaning, advice, pace)


def _degraded(meaning: str, advice: str) -> Entry:
    return Entry(Kind.DEGRADED, meaning, advice)


_ANOTHER = "delete this DeviceMount and create another one"

TABLE: Final[dict[Reason, Entry]] = {
    Reason.MOUNTED: Entry(Kind.READY, "The devices open in the target container.", ""),
    Reason.SUSPENDED: Entry(
        Kind.SUSPENDED,
        "spec.suspend is true: the devices are given back, the object stays.",
        "Set spec.suspend to false to mount again.",
    ),
    Reason.EXPIRED: Entry(
        Kind.SUSPENDED,
        "The time of spec.lifetime.expireAfter is over: the devices are given back, the object "
        "stays.",
        "Edit spec.lifetime to mount again: the time begins anew.",
    ),
    Reason.RESERVING: _waiting(
        "The shadow pod waits for scheduler and kubelet.", "It goes on by itself."
    ),
    Reason.GRAFTING: _waiting(
        "The devices are reserved and are being put into the container.", "It goes on by itself."
    ),
    Reason.TARGET_NOT_FOUND: _waiting(
        "The target pod does not exist, or no pod matches the selector.",
        "It mounts as soon as there is one and it runs; if spec.target is wrong, change it.",
    ),
    Reason.TARGET_NOT_RUNNING: _waiting(
        "The target pod or its container does not run.", "It mounts as soon as the container runs."
    ),
    Reason.TARGET_FINISHED: _waiting(
        "The target container has ended for good; its devices are given back.",
        "It mounts again when a new pod takes its place; else delete this DeviceMount.",
    ),
    Reason.CONTAINER_MISMATCH: _waiting(
        "Container runtime, kernel and API disagree about the target container.",
        "It is tried again; most likely the container was just replaced.",
    ),
    Reason.INSUFFICIENT: _waiting(
        "The target's node has too few free devices.",
        "It mounts as soon as the node has enough free ones.",
        RESERVATION,
    ),
    Reason.RESOURCE_UNKNOWN: _waiting(
        "The target's node does not offer the resource at all.",
        "It mounts when a device plugin on that node registers it; if the name is wrong, change "
        "spec.resources.",
        RESERVATION,
    ),
    Reason.UNSCHEDULABLE: _waiting(
        "The shadow pod cannot be placed on the target's node, or no scheduler has looked at it.",
        "It mounts as soon as the pod can be placed.",
        RESERVATION,
    ),
    Reason.QUOTA_EXCEEDED: _waiting(
        "A ResourceQuota of the namespace refuses the shadow pod.",
        "It mounts when the quota has room: delete what counts against it, or have it raised.",
        RESERVATION,
    ),
    Reason.DRIVER_MISSING: _waiting(
        "The node offers none of the resource, and its device plugin says what it does not find.",
        "It mounts when the device plugin offers the devices: install what is absent.",
        RESERVATION,
    ),
    Reason.NODE_NOT_ENABLED: _waiting(
        "The target's node has no node agent, since it lacks the label that lends it to "
        "devicemount.",
        "It goes on when the node has that label and its agent runs.",
        PATIENT,
    ),
    Reason.AGENT_UNAVAILABLE: _waiting(
        "The node agent on the target's node does not answer, or there is none.",
        "It goes on when the agent answers: see the pods of DaemonSet devicemount-agent.",
    ),
    Reason.API_UNAVAILABLE: _waiting(
        "The API server failed, or did not answer in time: a slow webhook looks the same.",
        "It is tried again.",
        RESERVATION,
    ),
    Reason.WEBHOOK_UNAVAILABLE: _waiting(
        "What a shadow pod has to pass on its way in is not there: a webhook does not answer, or "
        "the namespace's default service account does not exist (yet).",
        "It mounts when that is there; the message names it.",
        RESERVATION,
    ),
    Reason.NODE_DRAINING: _waiting(
        "The reservation was taken away, and the target's node is cordoned or about to go: nothing "
        "is reserved there anew.",
        "It ends when the target pod leaves the node, or the node is uncordoned.",
    ),
    Reason.NAMESPACE_TERMINATING: _waiting(
        "The namespace is being deleted; nothing can be created in it.",
        "It ends with the namespace.",
        RESERVATION,
    ),
    Reason.SHADOW_NOT_RUNNING: _waiting(
        "The shadow pod's process does not run, so nothing would guard the device.",
        "It is tried again: see the shadow pod's events.",
        RESERVATION,
    ),
    Reason.ALLOCATION_UNKNOWN: _waiting(
        "The device plugin's answer to the kubelet names no device file that is understood.",
        "The devices stay reserved; it mounts when the CDI spec or the profile that explains them "
        "arrives.",
        PATIENT,
    ),
    Reason.DEVICE_BUSY: _waiting(
        "A process has a device open. With `whenBusy: Wait` nothing is taken away; with "
        "`Terminate` access is revoked and the process is being ended.",
        "It is given back when none of them has it any more.",
    ),
    Reason.RESERVATION_LOST: _waiting(
        "The shadow pod was deleted, evicted or failed, so the device was taken away.",
        "A new reservation is made.",
        RESERVATION,
    ),
    Reason.STALE_REQUEST: _waiting(
        "The agent has seen a newer request, from another operator.", "It is tried again."
    ),
    Reason.STILL_RESERVED: _waiting(
        "The agent still has a device granted for an earlier shadow pod.", "It is tried again."
    ),
    Reason.SHRINK_NOT_POSSIBLE: _permanent(
        "Fewer devices are wanted than are mounted, and no whole shadow pods add up to the "
        "difference: nothing is taken away.",
        "Set spec.resources to what whole shadow pods make up; one DeviceMount per device gives "
        "devices back one by one.",
    ),
    Reason.CONTAINER_NOT_FOUND: _permanent(
        "The target pod has no container of that name.",
        "Name one of them in spec.target.container.",
    ),
    Reason.CONTAINER_AMBIGUOUS: _permanent(
        "The target pod has several containers and none is named.",
        "Name one of them in spec.target.container, or set the pod's annotation "
        "kubectl.kubernetes.io/default-container.",
    ),
    Reason.NOT_ALLOWED: _permanent(
        "A policy refuses the shadow pod, or the node agent the request.",
        "Have the policy changed, or the pod's namespace; it is tried again now and then.",
        RESERVATION,
    ),
    Reason.RESERVATION_NOT_ALLOWED: _permanent(
        "spec.reservation asks for an annotation or a priority that it may not have.",
        "Leave it out: " + _ANOTHER + "; which annotations are allowed is a setting of the "
        "operator.",
    ),
    Reason.UNSUPPORTED_RESOURCE: _permanent(
        "The node's profile refuses the resource by name: it cannot be given to a running "
        "container (yet).",
        "Ask for another resource in spec.resources.",
    ),
    Reason.ENV_FILE_NEEDED: _permanent(
        "Only environment variables limit or set up the device, and a running process cannot be "
        "given any.",
        "To have them in a file that your programs read, set "
        "spec.reservation.acceptEnvFile: " + _ANOTHER + ".",
    ),
    Reason.ALLOCATED_BY_DRA: _permanent(
        "A driver for dynamic resource allocation serves the resource, not a device plugin: such "
        "devices cannot be mounted (yet).",
        "Ask for a resource that a device plugin serves.",
    ),
    Reason.PATH_CONFLICT: _permanent(
        "Something else stands in the container where the device's file belongs.",
        "Remove it from the container, or use another device; it is tried again now and then.",
    ),
    Reason.UNSUPPORTED_RUNTIME: _permanent(
        "The target container runs in a way in which devices cannot be put into it (yet).",
        "Run it without what the message names.",
    ),
    Reason.FILTER_BLOCKED: _permanent(
        "A device filter above the container's, or one that cannot be extended, denies it.",
        "Allow the device there, or run the container without that filter.",
    ),
    Reason.LIBRARIES_MISSING: _degraded(
        "The target container lacks libraries of the device's driver, and the allocation brings "
        "none.",
        "Start the target so that it has them: the message names them, and the quick start of the "
        "vendor says how.",
    ),
    Reason.VERSION_MISMATCH: _degraded(
        "The libraries in the target container do not fit the driver of the node.",
        "Start the target from an image that fits, or update the driver.",
    ),
    Reason.DEVICE_UNHEALTHY: _degraded(
        "The device plugin says that a mounted device is unhealthy.",
        "It ends when the plugin says otherwise; the device stays mounted.",
    ),
    Reason.NOT_PERMITTED: _degraded(
        "The container's user may not open the device's file, whose owner and mode are as the "
        "container runtime would have set them.",
        "Give the target pod the file's group by securityContext.supplementalGroups, or run it as "
        "another user.",
    ),
    Reason.NOT_ISOLATED: Entry(
        Kind.NOTE,
        "The target container may open every device of the node anyway: it is reserved and its "
        "file is there, but access to it is not isolated, also after the unmount.",
        "Run the target unprivileged if that matters.",
    ),
}


def trouble(word: str) -> Reason | None:
    """Return the reason that another's word names, if it is one for not being ready."""
    found = next((reason for reason in Reason if reason.value == word), None)
    if found is None or TABLE[found].kind not in (Kind.WAITING, Kind.PERMANENT):
        return None
    return found


def is_note(word: str) -> bool:
    """Tell whether another's word names something that is as it is meant to be."""
    found = next((reason for reason in Reason if reason.value == word), None)
    return found is not None and TABLE[found].kind is Kind.NOTE


def message(reason: Reason, fact: str) -> str:
    """Return the whole message: what is so, then what to do."""
    advice = TABLE[reason].advice
    sentence = fact.rstrip(". \n")
    return f"{sentence}. {advice}" if advice else f"{sentence}."


_HEAD = """# Reasons

Generated from `operator/devicemount_operator/reasons.py` by `make crds`; a test compares.

The reason of a DeviceMount's condition `Ready`. **Waiting** (`Reconciling=True`) ends by itself;
**permanent** (`Stalled=True`) lasts until the object, its target or a policy changes. The message
in status says what is so in the case at hand and ends with the advice below. **Degraded** is the
reason of condition `Degraded`, which a mount may have while it is `Ready`. A **note** stands in the
message of `Ready`.

| reason | kind | meaning | what to do |
|---|---|---|---|
"""


def to_markdown() -> str:
    """Return docs/reasons.md."""
    rows = (
        f"| `{r.value}` | {e.kind.value} | {e.meaning} | {e.advice} |" for r, e in TABLE.items()
    )
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
