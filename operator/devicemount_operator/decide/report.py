# SPDX-License-Identifier: Apache-2.0
"""A Report becomes the whole status, and the Events of what changed. Pure; the models bound what is
written.

Conditions follow kstatus: waiting is Reconciling=True, what somebody must change is Stalled=True,
and a suspended mount has neither these nor Ready. A transition's time moves only when a condition's
status does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from devicemount_operator.api import v1alpha1 as api
from devicemount_operator.decide import holders, lifetime, resized
from devicemount_operator.decide.decision import (
    Event,
    EventType,
    Report,
    TargetPhase,
    TargetReport,
)
from devicemount_operator.decide.observation import (
    Concern,
    Device,
    Grant,
    Holder,
    Observation,
    name_of,
)
from devicemount_operator.decide.size import fitted
from devicemount_operator.decide.target import is_gone
from devicemount_operator.decide.text import MAX_EVENT_MESSAGE, clip, listing
from devicemount_operator.reasons import TABLE, Kind, Reason, is_note

_MAX_NAME = 253
_MAX_PATH = 512
_MAX_CONTAINER_ID = 128
_HEALTH: Final[Mapping[str, Literal["Healthy", "Unhealthy", "Unknown"]]] = {
    "Healthy": "Healthy",
    "Unhealthy": "Unhealthy",
    "Unknown": "Unknown",
}
_UNKNOWN = "unknown"  # where an agent names nothing: the API demands a name
DEGRADED: Final = "Degraded"
RECOVERED: Final = "Recovered"
_MAX_REASON = 64
_SILENT: Final = frozenset({Reason.RESERVING, Reason.GRAFTING})  # progress is no news


@dataclass(frozen=True, slots=True)
class Rendered:
    """What is to be written: nothing where status says all of it already."""

    status: Mapping[str, Any] | None  # the whole status for a merge patch, absent fields null
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the conditions say: of one target pod, or of all of them together."""

    reason: Reason
    message: str
    ready: str | None  # status.ready
    is_found: bool | None  # None: nothing was said about it in this pass
    is_reserved: bool
    is_grafted: bool
    concerns: tuple[Concern, ...]


def render(observation: Observation, report: Report) -> Rendered:
    """Return the status that the report of the only target pod makes, if it differs from the one
    that stands."""
    return write(observation, summary_of(report), rows_of(observation, report))


def write(
    observation: Observation, summary: Summary, rows: tuple[api.TargetStatus, ...]
) -> Rendered:
    """Return the status that says this, if it differs from the one that stands."""
    before = observation.mount.status
    after = fitted(
        api.Status(
            observed_generation=observation.mount.metadata.generation,
            conditions=_conditions(observation, summary),
            ready=summary.ready,
            lifetime=lifetime.to_status(
                observation.mount,
                granted=[(row.pod_name, row.since) for row in rows if row.since is not None],
                is_target_gone=is_gone(observation),
                steady=observation.steady,
            ),
            targets=rows,
        )
    )
    if after == before:
        return Rendered(None, ())
    return Rendered(to_patch(after), _events(before, after, summary))


def to_patch(status: api.Status) -> dict[str, Any]:
    """Return the status as a merge patch replaces it: what is absent is null, or it would stay."""
    document = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    if status.lifetime is not None:  # merged field by field: what it has not must be said too
        document["lifetime"] = status.lifetime.model_dump(mode="json", by_alias=True)
    fields = (field.alias or name for name, field in api.Status.model_fields.items())
    return {name: document.get(name) or None for name in fields}


def summary_of(report: Report) -> Summary:
    """Return what the conditions say of the only target pod."""
    target, kind = report.target, TABLE[report.reason].kind
    is_silent = target is None and report.reason is not Reason.TARGET_NOT_FOUND
    return Summary(
        reason=report.reason,
        message=report.message,
        ready=None if kind is Kind.SUSPENDED else f"{int(is_ready(kind))}/1",
        is_found=None if is_silent else target is not None,
        is_reserved=target is not None and target.is_reserved,
        is_grafted=target is not None and target.is_grafted,
        concerns=target.concerns if target else (),
    )


def is_ready(kind: Kind) -> bool:
    """Say whether devices open in a target pod of which a reason of this kind is told."""
    return kind in (Kind.READY, Kind.DEGRADED, Kind.NOTE)


# Conditions


def _conditions(observation: Observation, summary: Summary) -> tuple[api.Condition, ...]:
    earlier = {condition.type: condition for condition in observation.mount.status.conditions}
    reason, message = summary.reason.value, clip(summary.message, api.MAX_MESSAGE)
    made = [
        api.Condition(
            type=kind,
            status="True" if holds else "False",
            reason=why or reason,
            message="" if why else message,
            observed_generation=observation.mount.metadata.generation,
        )
        for kind, holds, why in _facts(summary)
    ]
    made += _degraded(observation, summary)
    now = datetime.fromtimestamp(int(observation.wall), UTC)
    return tuple(_timed(condition, earlier.get(condition.type), now) for condition in made)


def _facts(summary: Summary) -> list[tuple[str, bool, str]]:
    """Return (type, whether it holds, a reason of its own or "" for the summary's)."""
    found, reserved, granted = summary.is_found, summary.is_reserved, summary.is_grafted
    aspects = [
        ("Reserved", reserved, "Reserved" if reserved else ""),
        ("Grafted", granted, "Grafted" if granted else ""),
    ]
    if found is not None:
        aspects.insert(0, ("TargetFound", found, "TargetFound" if found else ""))
    match TABLE[summary.reason].kind:
        case Kind.READY | Kind.DEGRADED | Kind.NOTE:
            return [("Ready", True, ""), *aspects]
        case Kind.SUSPENDED:
            return [("Suspended", True, "")]
        case Kind.WAITING:
            return [("Ready", False, ""), ("Reconciling", True, ""), *aspects]
        case Kind.PERMANENT:
            return [("Ready", False, ""), ("Stalled", True, ""), *aspects]


def _degraded(observation: Observation, summary: Summary) -> list[api.Condition]:
    """Return the condition of what is amiss although the devices open; none while nothing is."""
    concerns = [concern for concern in summary.concerns if not is_note(concern.reason)]
    if not concerns:
        return []
    return [
        api.Condition(
            type=DEGRADED,
            status="True",
            reason=clip(concerns[0].reason, _MAX_REASON) or _UNKNOWN,
            message=clip(" ".join(_sentence(concern) for concern in concerns), api.MAX_MESSAGE),
            observed_generation=observation.mount.metadata.generation,
        )
    ]


def _sentence(concern: Concern) -> str:
    return concern.message.rstrip(". \n") + "."


def _timed(condition: api.Condition, earlier: api.Condition | None, now: datetime) -> api.Condition:
    stays = earlier is not None and earlier.status == condition.status
    time = earlier.last_transition_time if earlier is not None and stays else now
    return condition.model_copy(update={"last_transition_time": time or now})


# Targets


def rows_of(observation: Observation, report: Report) -> tuple[api.TargetStatus, ...]:
    """Return one row for each pod: what the report is about, then what must not be forgotten."""
    told = () if report.target is None else (report.target,)
    by_pod = {target.pod_uid: target for target in reversed((*told, *report.unproved))}
    rows = [_row(observation, report, target) for target in reversed(by_pod.values())]
    return tuple(rows[: api.MAX_TARGETS])


def _row(observation: Observation, report: Report, target: TargetReport) -> api.TargetStatus:
    since = (
        None
        if target.granted_wall is None
        else datetime.fromtimestamp(int(target.granted_wall), UTC)
    )
    devices = _devices(target)
    cut = clip(_cut(target, devices), api.MAX_MESSAGE // 2)
    return api.TargetStatus(
        pod_uid=target.pod_uid,
        pod_name=name_of(observation, target.pod_uid),
        node_name=target.node,
        container_name=target.container,
        container_id=_container_id(observation, target),
        phase=target.phase.value,
        shadow_pods=target.shadow_pods[: api.MAX_SHADOW_PODS],
        since=since,
        devices=devices,
        holders=tuple(
            _holder(observation, target, holder) for holder in target.holders[: api.MAX_HOLDERS]
        ),
        timings=_timings(observation, target, since),
        reason=report.reason.value,
        message=clip(report.message, api.MAX_MESSAGE - len(cut)) + cut,
    )


def _container_id(observation: Observation, target: TargetReport) -> str | None:
    """Return the container that the devices were last known in: while its agent is silent too, so
    that another operator still knows of which container an end proves something (`proof`)."""
    if target.container_id is not None:
        return clip(target.container_id, _MAX_CONTAINER_ID) or None
    for row in observation.mount.status.targets:
        if row.pod_uid == target.pod_uid and set(row.shadow_pods) & set(target.shadow_pods):
            return row.container_id
    return None


def _devices(target: TargetReport) -> tuple[api.Device, ...]:
    """Name devices and their files, as many as fit into an object."""
    named: list[api.Device] = []
    room = api.MAX_FILES
    for device in target.devices[: api.MAX_DEVICES]:
        named.append(_device(device, room=room))
        room -= len(named[-1].nodes) + len(named[-1].mounts)
    return tuple(named)


def _device(device: Device, *, room: int) -> api.Device:
    nodes = device.nodes[: min(api.MAX_NODES, room)]
    mounts = device.mounts[: min(api.MAX_MOUNTS, room - len(nodes))]
    return api.Device(
        health=_HEALTH.get(device.health),
        mounts=tuple(clip(path, _MAX_PATH) or _UNKNOWN for path in mounts),
        env_file=clip(device.env_file, _MAX_PATH) or None,
        resource=clip(device.resource, _MAX_NAME) or _UNKNOWN,
        id=clip(device.id, _MAX_NAME) or _UNKNOWN,
        nodes=tuple(
            api.Node(
                path=clip(node.path, _MAX_PATH) or _UNKNOWN,
                type="b" if node.type == "b" else "c",
                major=node.major,
                minor=node.minor,
                access=clip(node.access, 3),
            )
            for node in nodes
        ),
    )


def _cut(target: TargetReport, named: tuple[api.Device, ...]) -> str:
    """Say which devices are not listed, or not with every file."""
    cut = [
        f"{device.id} has {files} files"
        for device, shown in zip(target.devices, named, strict=False)
        if (files := len(device.nodes) + len(device.mounts)) > len(shown.nodes) + len(shown.mounts)
    ]
    count = len(target.devices)
    unnamed = f" {count} devices, cut here." if count > api.MAX_DEVICES else ""
    return unnamed + (f" {listing(cut)}, cut here." if cut else "")


def _holder(observation: Observation, target: TargetReport, holder: Holder) -> api.Holder:
    """Name pod and container where they are ours to know; else by UID and id."""
    return api.Holder(
        pid=max(0, holder.pid),
        command=clip(holder.command, api.MAX_COMMAND),
        pod=clip(holders.pod_of(observation, holder), _MAX_NAME) or None,
        container=clip(holders.container_of(observation, target, holder), _MAX_CONTAINER_ID)
        or None,
        blocking=holder.blocking,
        note=clip(holder.note, api.MAX_NOTE) or None,
    )


def _timings(
    observation: Observation, target: TargetReport, since: datetime | None
) -> api.Timings | None:
    """Measure a grant when it is first reported; later reports of the same grant repeat it."""
    if since is None:
        return None
    for row in observation.mount.status.targets:
        if row.pod_uid == target.pod_uid and row.since == since and row.timings is not None:
            return row.timings
    seen, applied = observation.milestones.seen, observation.milestones.applied
    grant = _grant(observation, target)
    if seen is None or applied is None or grant is None or target.phase is not TargetPhase.MOUNTED:
        return None
    if grant.restarts:
        return None
    asked_ms = (applied - seen) * 1000
    return api.Timings(
        reserved_ms=_step(asked_ms, grant.timings_ms.get("chosen")),
        granted_ms=_step(asked_ms, grant.timings_ms.get("verified")),
        ready_ms=_step((observation.now - seen) * 1000, 0.0),
    )


def _grant(observation: Observation, target: TargetReport) -> Grant | None:
    grants = observation.agent.grants
    return next((g for g in grants if g.shadow_name in target.shadow_pods and g.devices), None)


def _step(start_ms: float, step_ms: float | None) -> float | None:
    return None if step_ms is None else round(max(0.0, start_ms + step_ms), 1)


# Events


def _events(before: api.Status, after: api.Status, summary: Summary) -> tuple[Event, ...]:
    """Return the Event of a new reason; a message that only changes its wording is none."""
    told = (*_of_reason(before, summary), *_of_health(before, after, summary))
    return (*told, *resized.tell(before, after))


def _of_reason(before: api.Status, summary: Summary) -> tuple[Event, ...]:
    spoken = {c.reason for c in before.conditions if c.type in ("Ready", "Suspended")}
    if summary.reason in _SILENT or summary.reason.value in spoken:
        return ()
    good = TABLE[summary.reason].kind in (Kind.READY, Kind.SUSPENDED)
    kind = EventType.NORMAL if good else EventType.WARNING
    return (Event(kind, summary.reason.value, clip(summary.message, MAX_EVENT_MESSAGE)),)


def _of_health(before: api.Status, after: api.Status, summary: Summary) -> tuple[Event, ...]:
    """Return the Event of what is amiss now, or is not any more while the devices open."""
    was, now = _find(before, DEGRADED), _find(after, DEGRADED)
    if now is not None and (was is None or was.reason != now.reason):
        text = clip(f"{now.reason}: {now.message}", MAX_EVENT_MESSAGE)
        return (Event(EventType.WARNING, DEGRADED, text),)
    if was is not None and now is None and TABLE[summary.reason].kind is Kind.READY:
        return (Event(EventType.NORMAL, RECOVERED, f"{was.reason} is over"),)
    return ()


def _find(status: api.Status, kind: str) -> api.Condition | None:
    return next((c for c in status.conditions if c.type == kind), None)
