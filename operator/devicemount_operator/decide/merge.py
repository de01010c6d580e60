# SPDX-License-Identifier: Apache-2.0
"""What the parts of a mount have to say becomes one status: a row each, conditions of the worst.

A pod that leaves has a row while it keeps something back, and no say in whether the mount is Ready:
that is so when the devices open in every target pod. Several pods that mount within moments of each
other are told at once: while one of them is still silent, nothing is written but what is amiss.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from devicemount_operator import reasons
from devicemount_operator.api import v1alpha1 as api
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.decide import report as reports
from devicemount_operator.decide.decision import Report, TargetPhase, TargetReport
from devicemount_operator.decide.observation import Concern, Observation, PodUID
from devicemount_operator.decide.report import Rendered, Summary
from devicemount_operator.decide.split import NAMED, Part
from devicemount_operator.decide.text import listing
from devicemount_operator.reasons import TABLE, Kind, Reason

# What is told first: what somebody must do something about, then what has still to happen.
_BADNESS: Final = (
    Kind.SUSPENDED,
    Kind.READY,
    Kind.NOTE,
    Kind.DEGRADED,
    Kind.WAITING,
    Kind.PERMANENT,
)
_PROGRESS: Final = frozenset({Reason.RESERVING, Reason.GRAFTING})
_LEFT: Final = frozenset({Reason.TARGET_NOT_FOUND, Reason.TARGET_FINISHED})


@dataclass(frozen=True, slots=True)
class Voice:
    """What came of one part in this pass. No report: it is as status says."""

    part: Part
    observation: Observation
    report: Report | None

    @property
    def row(self) -> api.TargetStatus | None:
        """Return what status says of the pod so far."""
        return next(iter(self.observation.mount.status.targets), None)

    @property
    def said(self) -> Report | None:
        """Return what it says now, or said when it last said anything; None: nothing yet."""
        if self.report is not None:
            return self.report
        setback, row = self.observation.setback, self.row
        if row is not None and (word := _reason_of(row)) is not None:
            return Report(reason=word, message=row.message or "", target=None)
        if setback is not None:
            return Report(reason=setback.reason, message=setback.message, target=None)
        return None

    @property
    def reason(self) -> Reason:
        return Reason.RESERVING if self.said is None else self.said.reason

    @property
    def is_ready(self) -> bool:
        return reports.is_ready(TABLE[self.reason].kind)

    @property
    def is_target(self) -> bool:
        """Say whether its pod is to have devices, as far as this pass has seen."""
        return self.part.counts and self.reason not in _LEFT

    @property
    def has_left(self) -> bool:
        """Say whether all is given back of which status still speaks."""
        return bool(self.part.leaving) and self.report is None and self.row is not None

    @property
    def is_trouble(self) -> bool:
        """Say whether it reports what must not wait to be told."""
        if self.report is None or self.is_ready:
            return False
        return self.row is None or self.row.reason != self.report.reason.value


def render(mount: DeviceMount, voices: tuple[Voice, ...], *, left_out: int) -> Rendered:
    """Return the status of the whole mount, if it differs from the one that stands."""
    only = voices[0]
    if len(voices) == 1 and only.part.key == NAMED and mount.spec.target.selector is None:
        return (
            Rendered(None, ())
            if only.report is None
            else reports.render(only.observation, only.report)
        )
    if _may_wait(mount, voices):
        return Rendered(None, ())
    frame = replace(only.observation, mount=_as_judged(mount, voices))
    rows = [row for voice in voices for row in _rows(voice)][: api.MAX_TARGETS]
    return reports.write(frame, _summary(mount, voices, left_out=left_out), tuple(rows))


def _as_judged(mount: DeviceMount, voices: tuple[Voice, ...]) -> DeviceMount:
    """Return the mount with the generation that this speaks of: the former one while a pod of which
    status tells says nothing new, since nobody may have looked at it after the edit."""
    if all(voice.report is not None or voice.row is None for voice in voices if voice.is_target):
        return mount
    generation = max(0, mount.status.observed_generation)
    meta = mount.metadata.model_copy(update={"generation": generation})
    return mount.model_copy(update={"metadata": meta})


def _may_wait(mount: DeviceMount, voices: tuple[Voice, ...]) -> bool:
    """Say whether there is nothing to tell, or something better soon."""
    if mount.metadata.deletion_timestamp is not None:
        return all(voice.report is None for voice in voices)
    is_silent = any(voice.is_target and voice.said is None for voice in voices)
    return is_silent and not any(voice.is_trouble or voice.has_left for voice in voices)


# Rows


def _rows(voice: Voice) -> tuple[api.TargetStatus, ...]:
    """Return a pod's row: what is told now, else what stands; none when it has left."""
    report, mount = voice.report, voice.observation.mount
    if report is None:
        is_done = voice.part.leaving or mount.metadata.deletion_timestamp is not None
        return () if is_done else mount.status.targets
    is_waiting = voice.is_target and TABLE[report.reason].kind is not Kind.SUSPENDED
    if report.target is None and is_waiting and voice.part.key != NAMED:
        report = replace(report, target=_bare(voice))
    return reports.rows_of(voice.observation, report)


def _bare(voice: Voice) -> TargetReport:
    return TargetReport(
        pod_uid=PodUID(voice.part.key),
        node=None,
        container=None,
        container_id=None,
        phase=TargetPhase.WAITING,
        shadow_pods=(),
    )


# Conditions


def _summary(mount: DeviceMount, voices: tuple[Voice, ...], *, left_out: int) -> Summary:
    targets = tuple(voice for voice in voices if voice.is_target)
    speakers = _speakers(mount, voices, targets)
    worst = max(speakers, key=_badness)  # the first of those that are equally bad
    return Summary(
        reason=worst.reason,
        message=_message(mount, voices, worst=worst, left_out=left_out),
        ready=_ready(worst, targets),
        is_found=bool(targets) or worst.reason is not Reason.TARGET_NOT_FOUND,
        is_reserved=_holds(mount, "Reserved", [_is_reserved(voice) for voice in targets]),
        is_grafted=_holds(mount, "Grafted", [_is_grafted(voice) for voice in targets]),
        concerns=tuple(_concerns(mount, targets)),
    )


def _speakers(
    mount: DeviceMount, voices: tuple[Voice, ...], targets: tuple[Voice, ...]
) -> tuple[Voice, ...]:
    """Return who decides on the conditions: the targets, while there are any. What an edit of
    podName leaves behind too, since nothing else goes on before it is given back; and whoever keeps
    something back when nobody is to have anything."""
    told = tuple(voice for voice in voices if voice.report is not None) or voices
    if mount.metadata.deletion_timestamp is not None or mount.spec.suspend:
        return told
    is_ready = bool(targets) and all(voice.is_ready for voice in targets)
    if mount.spec.target.selector is None and not is_ready:
        return told
    return targets or tuple(v for v in told if not v.part.leaving) or voices


def _badness(voice: Voice) -> tuple[int, bool, bool]:
    kind = TABLE[voice.reason].kind
    return _BADNESS.index(kind), voice.reason not in _PROGRESS, voice.said is not None


def _ready(worst: Voice, targets: tuple[Voice, ...]) -> str | None:
    if TABLE[worst.reason].kind is Kind.SUSPENDED:
        return None
    ready = sum(1 for voice in targets if voice.is_ready)
    return f"{ready}/{len(targets)}"


def _holds(mount: DeviceMount, kind: str, said: list[bool | None]) -> bool:
    """Say whether it is so in every pod; where one has not said, it is as status says."""
    if None in said and False not in said:
        return any(c.type == kind and c.status == "True" for c in mount.status.conditions)
    return bool(said) and all(said)


def _is_reserved(voice: Voice) -> bool | None:
    if voice.report is None:
        return _stands(voice)
    return voice.report.target is not None and voice.report.target.is_reserved


def _is_grafted(voice: Voice) -> bool | None:
    if voice.report is None:
        return _stands(voice)
    return voice.report.target is not None and voice.report.target.is_grafted


def _stands(voice: Voice) -> bool | None:
    """Return what status says of who says nothing new; None: it does not tell."""
    if voice.row is None:
        return False
    return True if voice.row.phase == TargetPhase.MOUNTED.value else None


def _concerns(mount: DeviceMount, targets: tuple[Voice, ...]) -> Iterable[Concern]:
    """Return what is amiss; what status tells stays while one of them says nothing new."""
    was = next((c for c in mount.status.conditions if c.type == reports.DEGRADED), None)
    if was is not None and any(voice.report is None for voice in targets):
        yield Concern(reason=was.reason, message=was.message)
        return
    for voice in targets:
        target = voice.report.target if voice.report else None
        for concern in target.concerns if target else ():
            yield replace(concern, message=f"pod {voice.part.pod_name}: {concern.message}")


def _message(mount: DeviceMount, voices: tuple[Voice, ...], *, worst: Voice, left_out: int) -> str:
    """Say how many are ready, what is the worst, who is left out and who keeps something back."""
    sentences = [_of_worst(tuple(voice for voice in voices if voice.is_target), worst)]
    if left_out:
        most = mount.spec.target.max_pods
        sentences.append(f"Left out are {left_out} more pods that match: maxPods is {most}.")
    keeping = [v.part.pod_name or v.part.key for v in voices if v is not worst and _keeps(v)]
    if keeping:
        sentences.append(f"Still to be given back is what others have: {listing(keeping)}.")
    return " ".join(sentences)


def _of_worst(targets: tuple[Voice, ...], worst: Voice) -> str:
    ready = sum(1 for voice in targets if voice.is_ready)
    if worst.is_ready:
        fact = f"the devices open in {ready} {'pod' if ready == 1 else 'pods'}"
        return reasons.message(worst.reason, fact)
    said = worst.said.message if worst.said else _IS_RESERVED
    if not worst.part.pod_name or TABLE[worst.reason].kind is Kind.SUSPENDED:
        return said
    count = f"{ready} of {len(targets)} pods are ready. " if targets else ""
    return f"{count}Pod {worst.part.pod_name}: {said}"


def _keeps(voice: Voice) -> bool:
    is_told = voice.report is not None and TABLE[voice.reason].kind is not Kind.SUSPENDED
    return is_told and bool(voice.part.leaving)


_IS_RESERVED: Final = reasons.message(Reason.RESERVING, "its devices are being reserved")


def _reason_of(row: api.TargetStatus) -> Reason | None:
    return next((reason for reason in Reason if reason.value == row.reason), None)
