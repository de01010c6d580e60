# SPDX-License-Identifier: Apache-2.0
"""The split of a mount into its target pods: each is observed, decided on and acted on by itself.

A pod is a target while spec.target means it. What a mount still has for another pod is a part as
well, until it is given back. With a selector a pod is known by its UID, from the watch of metadata;
by name it is one pod, whichever has the name, with what a former pod of that name has left, since
its UID is known only when it was read. Shadow pods are never targets: nobody's selector finds them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, NewType

from devicemount_operator.api.v1alpha1 import (
    Condition,
    DeviceMount,
    LabelRequirement,
    LabelSelector,
    TargetStatus,
)
from devicemount_operator.decide.decision import TargetPhase
from devicemount_operator.decide.observation import AgentView, PodUID

PartKey = NewType("PartKey", str)  # a target pod's UID, or NAMED

NAMED: Final = PartKey("")  # the pod of spec.target.podName; or nobody, for want of any target


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A pod that has not ended, as a watch of metadata shows it."""

    uid: PodUID
    name: str
    labels: Mapping[str, str]
    created: str  # RFC 3339, in UTC: sorts by itself
    deleting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One target pod of a mount, or one that was."""

    key: PartKey
    pod_name: str  # empty: nobody's, or unknown
    leaving: str = ""  # why it is no target any more; empty: it is one
    ending: bool = False  # it is being deleted, and keeps its devices until its container ends
    after: tuple[str, ...] = ()  # pods that give back what they have before this one gets anything
    others: frozenset[PodUID] = frozenset()  # what NAMED is not about

    @property
    def counts(self) -> bool:
        """Say whether it is one of the pods that are to have devices."""
        return not self.leaving and not self.ending and bool(self.pod_name)

    def is_about(self, target_uid: PodUID) -> bool:
        """Say whether what the mount has for this pod is this part's."""
        if self.key == NAMED:
            return bool(self.pod_name) and target_uid not in self.others
        return PartKey(target_uid) == self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The parts, those that are targets first; at least one of them speaks for the mount."""

    parts: tuple[Part, ...]
    left_out: int = 0  # matching pods beyond maxPods


def split(
    mount: DeviceMount, *, held: Mapping[PodUID, str], candidates: tuple[Candidate, ...]
) -> Split:
    """Return the parts. `held`: for which pods the mount has something, and their names if known.

    Candidates are needed for a selector only, and not for a mount that is being deleted.
    """
    target = mount.spec.target
    if target.selector is None:
        return _by_name(target.pod_name or "", held)
    return _by_labels(target.selector, most=target.max_pods, held=held, candidates=candidates)


def narrowed(mount: DeviceMount, part: Part) -> DeviceMount:
    """Return the mount with a status that speaks of this part alone."""
    if part.key == NAMED and part.pod_name and not part.others:
        return mount
    rows = tuple(row for row in mount.status.targets if part.is_about(PodUID(row.pod_uid)))
    status = mount.status.model_copy(update={"targets": rows, "conditions": _conditions(rows)})
    return mount.model_copy(update={"status": status})


def narrowed_view(view: AgentView, part: Part) -> AgentView:
    """Return what agents say of this part alone."""
    grants = tuple(grant for grant in view.grants if part.is_about(grant.place.target_uid))
    return replace(view, grants=grants)


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Say whether these are a pod's labels that is meant, as Kubernetes has it."""
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _meets(requirement, labels) for requirement in selector.match_expressions
    )


def _by_name(pod_name: str, held: Mapping[PodUID, str]) -> Split:
    others = {uid: name for uid, name in held.items() if name not in ("", pod_name)}
    after = tuple(sorted(others.values()))
    named = Part(key=NAMED, pod_name=pod_name, after=after, others=frozenset(others))
    leaving = (_leaving(uid, name, "spec.target names another pod") for uid, name in others.items())
    return Split(parts=(named, *leaving))


def _by_labels(
    selector: LabelSelector,
    *,
    most: int,
    held: Mapping[PodUID, str],
    candidates: tuple[Candidate, ...],
) -> Split:
    matching = [pod for pod in candidates if matches(selector, pod.labels)]
    living = [pod for pod in matching if not pod.deleting]
    living.sort(key=lambda pod: (pod.uid not in held, pod.created, pod.name))
    ending = [pod for pod in matching if pod.deleting and pod.uid in held]
    wanted = {pod.uid: pod for pod in (*living[:most], *ending)}
    why = {pod.uid: "its labels do not match spec.target.selector" for pod in candidates}
    why |= {pod.uid: "more pods match than spec.target.maxPods" for pod in living[most:]}
    names = {pod.uid: pod.name for pod in candidates}
    parts = tuple(
        Part(key=PartKey(pod.uid), pod_name=pod.name, ending=pod.deleting)
        for pod in sorted(wanted.values(), key=lambda pod: (pod.deleting, pod.created, pod.name))
    )
    nobody = () if living else (Part(key=NAMED, pod_name=""),)
    leaving = (
        _leaving(uid, names.get(uid, name), why.get(uid, "it has ended or is gone"))
        for uid, name in held.items()
        if uid not in wanted
    )
    return Split(parts=(*nobody, *parts, *leaving), left_out=len(living[most:]))


def _leaving(uid: PodUID, pod_name: str, why: str) -> Part:
    return Part(key=PartKey(uid), pod_name=pod_name, leaving=why)


def _conditions(rows: tuple[TargetStatus, ...]) -> tuple[Condition, ...]:
    """Return what a row says, as status of a mount with one target pod would say it."""
    if not rows or rows[0].reason is None:
        return ()
    is_mounted = rows[0].phase == TargetPhase.MOUNTED.value
    status: Literal["True", "False"] = "True" if is_mounted else "False"
    return (Condition(type="Ready", status=status, reason=rows[0].reason),)


def _meets(requirement: LabelRequirement, labels: Mapping[str, str]) -> bool:
    """NotIn is met by a pod without the label too, as in every selector of Kubernetes."""
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
