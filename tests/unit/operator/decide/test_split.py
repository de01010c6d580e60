# SPDX-License-Identifier: Apache-2.0
"""Which pods a mount is about: selectors as Kubernetes reads them, who stays, leaves or waits."""

from typing import Any

import pytest

from devicemount_operator.api.v1alpha1 import DeviceMount, LabelSelector, Status
from devicemount_operator.decide.observation import PodUID
from devicemount_operator.decide.split import NAMED, Candidate, Part, matches, narrowed, split
from unit.operator import given

WEB = {"app": "web", "tier": "front"}


def selector(*expressions: tuple[Any, ...], **labels: str) -> LabelSelector:
    requirements = [
        {"key": key, "operator": operator, "values": list(values)}
        for key, operator, *values in expressions
    ]
    return LabelSelector.model_validate({"matchLabels": labels, "matchExpressions": requirements})


@pytest.mark.parametrize(
    ("wanted", "is_met"),
    [
        (selector(app="web"), True),
        (selector(app="web", tier="back"), False),
        (selector(("app", "In", "api", "web")), True),
        (selector(("app", "In", "api")), False),
        (selector(("zone", "In", "")), False),
        (selector(("app", "NotIn", "web")), False),
        (selector(("zone", "NotIn", "a")), True),
        (selector(("app", "Exists")), True),
        (selector(("zone", "Exists")), False),
        (selector(("zone", "DoesNotExist")), True),
        (selector(("app", "DoesNotExist")), False),
        (selector(("tier", "Exists"), app="api"), False),
        (selector(), True),
    ],
    ids=[
        "a label has the value",
        "all labels must have theirs",
        "one of the values",
        "none of the values",
        "an absent label has no value, not even an empty one",
        "a value that is excluded",
        "NotIn is met by a pod without the label",
        "a label exists",
        "a label does not exist",
        "it is not to exist and does not",
        "it is not to exist and does",
        "labels and expressions must both be met",
        "nothing is demanded: every pod (the API refuses such a selector)",
    ],
)
def test_a_selector_means_what_it_means_everywhere(
    wanted: LabelSelector,
    is_met: bool,  # noqa: FBT001
) -> None:
    assert matches(wanted, WEB) is is_met


def mount(most: int = 32, **target: Any) -> DeviceMount:
    labels = {"selector": {"matchLabels": {"app": "web"}}, "maxPods": most}
    return given.mount(target=target or labels)


def pod(name: str, created: int = 0, **changes: Any) -> Candidate:
    fields = {"labels": WEB, "deleting": False, "created": f"2026-11-26T07:00:{created:02}Z"}
    return Candidate(uid=PodUID(f"uid-of-{name}"), name=name, **{**fields, **changes})


def held(*names: str) -> dict[PodUID, str]:
    return {PodUID(f"uid-of-{name}"): name for name in names}


def told(mount: DeviceMount, held: dict[PodUID, str], *pods: Candidate) -> list[str]:
    """Return the parts for people: who is a target, who ends, who leaves and why."""
    parts = split(mount, held=held, candidates=pods).parts
    return [_told(part) for part in parts]


def _told(part: Part) -> str:
    name = part.pod_name or "nobody"
    if part.leaving:
        return f"{name} leaves: {part.leaving}"
    if part.after:
        return f"{name} after {', '.join(part.after)}"
    return f"{name} ends" if part.ending else name


NO_MATCH = "its labels do not match spec.target.selector"
ABOVE = "more pods match than spec.target.maxPods"
GONE = "it has ended or is gone"
OTHER = {"app": "db"}


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (told(mount(), {}), ["nobody"]),
        (told(mount(), {}, pod("a"), pod("b", labels=OTHER)), ["a"]),
        (told(mount(), {}, pod("b", 1), pod("a", 2)), ["b", "a"]),
        (told(mount(2), {}, pod("c", 3), pod("a", 1), pod("b", 2)), ["a", "b"]),
        (
            told(mount(2), held("c"), pod("c", 3), pod("a", 1), pod("b", 2)),
            ["a", "c"],
        ),
        (
            told(mount(1), held("a", "b"), pod("a", 1), pod("b", 2)),
            ["a", f"b leaves: {ABOVE}"],
        ),
        (
            told(mount(), held("a"), pod("a", labels=OTHER)),
            ["nobody", f"a leaves: {NO_MATCH}"],
        ),
        (told(mount(), held("a")), ["nobody", f"a leaves: {GONE}"]),
        (
            told(mount(), held("a"), pod("a", 1, deleting=True), pod("b", 2)),
            ["b", "a ends"],
        ),
        (told(mount(), {}, pod("a", deleting=True)), ["nobody"]),
        (
            told(mount(1), held("a"), pod("a", 1, deleting=True), pod("b", 2)),
            ["b", "a ends"],
        ),
        (told(mount(podName="a"), {}), ["a"]),
        (told(mount(podName="a"), held("a")), ["a"]),
        (told(mount(podName="a"), {PodUID("x"): ""}), ["a"]),
        (
            told(mount(podName="a"), held("b", "a")),
            ["a after b", "b leaves: spec.target names another pod"],
        ),
    ],
    ids=[
        "no pod matches: nobody speaks for the mount",
        "a pod with other labels is none",
        "the oldest come first",
        "at most so many, the oldest",
        "who has devices keeps them, though older ones wait",
        "fewer are wanted: the youngest of those that have devices leaves",
        "its labels were changed",
        "it is gone",
        "one that is being deleted keeps its devices until it has ended",
        "one that is being deleted gets none",
        "one that is being deleted takes no place from the next",
        "by name, nothing is held",
        "by name, what its pod or a former pod of that name has",
        "by name, what is held for a pod whose name nobody knows",
        "by another name: the former pod gives back first",
    ],
)
def test_who_is_a_target(parts: list[str], found: list[str]) -> None:
    assert parts == found


def test_how_many_are_left_out_is_counted() -> None:
    pods = tuple(pod(name, n) for n, name in enumerate("abcd"))
    assert split(mount(3), held={}, candidates=pods).left_out == 1
    assert split(mount(4), held={}, candidates=pods).left_out == 0


def test_status_speaks_of_one_pod_alone() -> None:
    rows = [
        {"podUID": "uid-of-a", "phase": "Mounted", "reason": "Mounted"},
        {"podUID": "uid-of-b", "phase": "Waiting", "reason": "Insufficient"},
    ]
    condition = {"type": "Ready", "status": "False", "reason": "Insufficient"}
    status = {"observedGeneration": 1, "conditions": [condition], "targets": rows}
    whole = mount().model_copy(update={"status": given.mount(status=status).status})
    parts = split(whole, held={}, candidates=(pod("a"), pod("b"))).parts

    def said(status: Status) -> list[tuple[str, str, str]]:
        return [(c.type, c.status, c.reason) for c in status.conditions]

    of_a, of_b = (narrowed(whole, part).status for part in parts)
    assert [row.pod_uid for row in of_a.targets] == ["uid-of-a"]
    assert said(of_a) == [("Ready", "True", "Mounted")]
    assert [row.pod_uid for row in of_b.targets] == ["uid-of-b"]
    assert said(of_b) == [("Ready", "False", "Insufficient")]


def test_by_name_status_is_what_it_is() -> None:
    whole = given.mount()
    assert narrowed(whole, Part(key=NAMED, pod_name="notebook-0")) is whole
