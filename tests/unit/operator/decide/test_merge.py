# SPDX-License-Identifier: Apache-2.0
"""Many target pods, one status: a row each, the worst of them in the conditions, few writes."""

from typing import Any

import pytest

from devicemount_operator import reasons
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.decide import merge
from devicemount_operator.decide.decision import Report, TargetPhase, TargetReport
from devicemount_operator.decide.merge import Voice
from devicemount_operator.decide.observation import PodUID, Setback, TargetAbsent
from devicemount_operator.decide.report import Rendered
from devicemount_operator.decide.split import NAMED, Part, PartKey, narrowed
from devicemount_operator.reasons import Reason
from unit.operator import given
from unit.operator.decide.kstatus import Verdict, verdict

SELECTOR = {"selector": {"matchLabels": {"app": "web"}}, "maxPods": 5}


def selecting(*rows: dict[str, Any], ready: str | None = None, **changes: Any) -> DeviceMount:
    """Return a mount whose status has these rows."""
    condition = {"type": "Ready", "status": ready, "reason": "Any"}
    status: dict[str, Any] = {
        "observedGeneration": 1,
        "conditions": [condition] if ready else [],
        "targets": list(rows),
    }
    return given.mount(**{"target": SELECTOR, "status": status, **changes})


def row(name: str, reason: str = "Mounted", phase: str = "Mounted") -> dict[str, Any]:
    return {"podUID": f"uid-of-{name}", "podName": name, "reason": reason, "phase": phase}


def says(
    reason: Reason | None,
    name: str = "a",
    *,
    mount: DeviceMount | None = None,
    setback: Setback | None = None,
    has_target: bool = True,
    is_reserved: bool = False,
    concerns: tuple[Any, ...] = (),
    **part: Any,
) -> Voice:
    """Return what comes of one pod in a pass; a reason of None: it has nothing new to say."""
    about = Part(key=PartKey(f"uid-of-{name}"), pod_name=name, **part)
    is_mounted = reason is Reason.MOUNTED
    target = TargetReport(
        pod_uid=PodUID(f"uid-of-{name}"),
        node=given.NODE,
        container="notebook",
        container_id=None,
        phase=TargetPhase.MOUNTED if is_mounted else TargetPhase.WAITING,
        shadow_pods=("dm-1",),
        granted_wall=given.WALL if is_mounted else None,
        is_reserved=is_mounted or is_reserved,
        is_grafted=is_mounted,
        concerns=concerns,
    )
    whole = mount or selecting()
    seen = given.observation(
        mount=narrowed(whole, about), pod_name=name, target=None, setback=setback
    )
    report = (
        None
        if reason is None
        else Report(
            reason=reason,
            message=reasons.message(reason, f"{name} is so"),
            target=target if has_target else None,
        )
    )
    return Voice(about, seen, report)


def nobody(reason: Reason = Reason.TARGET_NOT_FOUND, *, mount: DeviceMount | None = None) -> Voice:
    part = Part(key=NAMED, pod_name="")
    seen = given.observation(
        mount=narrowed(mount or selecting(), part), pod_name="", target=TargetAbsent()
    )
    return Voice(part, seen, Report(reason=reason, message="none matches.", target=None))


def rendered(*voices: Voice, mount: DeviceMount | None = None, left_out: int = 0) -> Rendered:
    return merge.render(mount or selecting(), voices, left_out=left_out)


def conditions(found: Rendered) -> dict[str, tuple[str, str]]:
    assert found.status is not None
    return {c["type"]: (c["status"], c["reason"]) for c in found.status["conditions"]}


def message(found: Rendered) -> str:
    assert found.status is not None
    text: str = found.status["conditions"][0]["message"]
    return text


def rows(found: Rendered) -> list[tuple[str, str]]:
    assert found.status is not None
    return [(r["podName"], r["reason"]) for r in found.status["targets"] or ()]


M, I, W = Reason.MOUNTED, Reason.INSUFFICIENT, Reason.TARGET_NOT_RUNNING  # noqa: E741


@pytest.mark.parametrize(
    ("voices", "ready", "reason", "judged"),
    [
        ([says(M, "a"), says(M, "b")], "2/2", "Mounted", "Current"),
        ([says(M, "a"), says(I, "b"), says(W, "c")], "1/3", "Insufficient", "InProgress"),
        ([says(I, "a"), says(Reason.PATH_CONFLICT, "b")], "0/2", "PathConflict", "Failed"),
        ([says(Reason.GRAFTING, "a"), says(I, "b")], "0/2", "Insufficient", "InProgress"),
        ([nobody()], "0/0", "TargetNotFound", "InProgress"),
        ([says(M, "a"), says(W, "b", ending=True)], "1/1", "Mounted", "Current"),
        ([nobody(), says(W, "b", ending=True)], "0/0", "TargetNotFound", "InProgress"),
        (
            [says(M, "a"), says(Reason.DEVICE_BUSY, "b", leaving="x")],
            "1/1",
            "Mounted",
            "Current",
        ),
        (
            [says(M, "a"), says(Reason.TARGET_FINISHED, "b")],
            "1/1",
            "Mounted",
            "Current",
        ),
        ([says(Reason.TARGET_FINISHED, "b")], "0/0", "TargetFinished", "InProgress"),
        (
            [says(M, "a"), says(Reason.TARGET_NOT_FOUND, "b", has_target=False)],
            "1/1",
            "Mounted",
            "Current",
        ),
    ],
    ids=[
        "the devices open in all: Ready",
        "one of three: the first of those that wait says why",
        "what somebody must act on comes before what ends by itself",
        "what is amiss comes before what goes on",
        "nobody matches: not Ready",
        "who is being deleted does not count",
        "all are being deleted: nobody matches",
        "who leaves does not count, even if it keeps a device",
        "who has ended does not count",
        "all have ended",
        "who is gone already, though the watch is late, does not count",
    ],
)
def test_the_conditions_say_the_worst(
    voices: list[Voice], ready: str, reason: str, judged: str
) -> None:
    found = rendered(*voices)
    assert found.status is not None
    assert found.status["ready"] == ready
    kinds = conditions(found)
    assert kinds["Ready"] == ("True" if judged == "Current" else "False", reason)
    seen = {"metadata": {"generation": 1}, "status": found.status}
    assert verdict(seen) is Verdict(judged)


def test_each_pod_has_its_row_with_its_own_reason() -> None:
    leaves = says(Reason.DEVICE_BUSY, "c", leaving="x")
    found = rendered(says(M, "a"), says(I, "b", has_target=False), leaves)
    assert rows(found) == [("a", "Mounted"), ("b", "Insufficient"), ("c", "DeviceBusy")]


def test_who_says_nothing_new_keeps_its_row() -> None:
    before = selecting(row("a"), row("b", "Insufficient", "Waiting"))
    found = rendered(says(None, "a", mount=before), says(M, "b", mount=before), mount=before)
    assert rows(found) == [("a", "Mounted"), ("b", "Mounted")]
    assert found.status is not None
    assert found.status["ready"] == "2/2"


def test_the_row_of_who_has_left_goes() -> None:
    before = selecting(row("a"), row("b"))
    gone = says(None, "b", mount=before, leaving="gone")
    assert rows(rendered(says(M, "a", mount=before), gone, mount=before)) == [("a", "Mounted")]


def test_several_that_mount_within_moments_are_told_at_once() -> None:
    assert rendered(says(M, "a"), says(None, "b")).status is None
    found = rendered(says(M, "a"), says(M, "b"))
    assert found.status is not None
    assert [event.reason for event in found.events] == ["Mounted"]


def test_a_pod_that_comes_is_not_told_before_it_has_something_to_say() -> None:
    before = selecting(row("a"), ready="True")
    assert rendered(says(M, "a", mount=before), says(None, "b"), mount=before).status is None
    found = rendered(says(M, "a", mount=before), says(W, "b"), mount=before)
    assert conditions(found)["Ready"] == ("False", "TargetNotRunning")


def test_what_is_amiss_is_told_at_once_and_who_is_silent_is_not_ready() -> None:
    before = selecting(row("a"), ready="True")
    found = rendered(says(I, "a", mount=before), says(None, "b"), mount=before)
    assert conditions(found)["Ready"] == ("False", "Insufficient")
    left = rendered(says(None, "a", mount=before, leaving="x"), says(None, "b"), mount=before)
    assert conditions(left)["Ready"] == ("False", "Reserving")


def test_a_setback_speaks_for_who_tries_again() -> None:
    setback = Setback(
        reason=I, message="too few.", count=2, generation=1, at=given.NOW, until=given.NOW
    )
    found = rendered(says(M, "a"), says(None, "b", setback=setback))
    assert conditions(found)["Ready"] == ("False", "Insufficient")
    assert message(found) == "1 of 2 pods are ready. Pod b: too few."


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (rendered(says(M, "a"), says(M, "b")), "the devices open in 2 pods."),
        (rendered(says(M, "a")), "the devices open in 1 pod."),
        (
            rendered(says(M, "a"), left_out=2),
            "the devices open in 1 pod. Left out are 2 more pods that match: maxPods is 5.",
        ),
        (
            rendered(says(M, "a"), says(W, "b")),
            "1 of 2 pods are ready. Pod b: b is so. It mounts as soon as the container runs.",
        ),
        (rendered(nobody()), "none matches."),
        (
            rendered(says(M, "a"), says(Reason.DEVICE_BUSY, "c", leaving="x")),
            "the devices open in 1 pod. Still to be given back is what others have: c.",
        ),
    ],
    ids=["all", "the only one", "too many match", "one of two", "nobody", "one keeps a device"],
)
def test_the_message_counts_and_names(found: Rendered, text: str) -> None:
    assert message(found) == text


def test_while_one_is_busy_a_deletion_says_which_and_the_others_are_gone() -> None:
    deleted = given.deleted(target=SELECTOR, status={"targets": [row("a"), row("b")]})
    free = says(None, "a", mount=deleted, leaving="x")
    busy = says(Reason.DEVICE_BUSY, "b", mount=deleted, leaving="x")
    found = rendered(free, busy, mount=deleted)
    assert rows(found) == [("b", "DeviceBusy")]
    assert conditions(found)["Ready"] == ("False", "DeviceBusy")
    assert rendered(free, mount=deleted).status is None, "the object is about to go"


def test_while_one_is_busy_a_suspended_mount_says_so() -> None:
    suspended = selecting(row("a"), suspend=True)
    calm = nobody(Reason.SUSPENDED, mount=suspended)
    busy = says(Reason.DEVICE_BUSY, "a", mount=suspended, leaving="x")
    assert conditions(rendered(calm, busy, mount=suspended))["Ready"] == ("False", "DeviceBusy")
    free = says(Reason.SUSPENDED, "a", mount=suspended, leaving="x", has_target=False)
    found = rendered(calm, free, mount=suspended)
    assert conditions(found) == {"Suspended": ("True", "Suspended")}
    assert rows(found) == []
    assert message(found) == "none matches."


def test_after_another_pod_is_named_the_former_one_is_told_of_first() -> None:
    named = given.mount()
    former = says(Reason.DEVICE_BUSY, "old", mount=named, leaving="x")
    part = Part(key=NAMED, pod_name="notebook-0", others=frozenset({PodUID("uid-of-old")}))
    seen = given.observation(mount=narrowed(named, part))
    waits = Voice(part, seen, Report(reason=Reason.RESERVING, message="later.", target=None))
    found = rendered(waits, former, mount=named)
    assert conditions(found)["Ready"] == ("False", "DeviceBusy")
    mounted = says(M, "new", mount=named)
    assert conditions(rendered(mounted, former, mount=named))["Ready"] == ("True", "Mounted")


def test_what_is_amiss_names_its_pod() -> None:
    found = rendered(says(M, "a"), says(M, "b", concerns=(given.concern(),)))
    assert conditions(found)["Degraded"] == ("True", "LibrariesMissing")
    assert found.status is not None
    text = next(c["message"] for c in found.status["conditions"] if c["type"] == "Degraded")
    assert text == "pod b: libcuda.so.1 is absent."


def test_what_says_all_of_it_already_is_not_written_again() -> None:
    first = rendered(says(M, "a"), says(I, "b"))
    assert first.status is not None
    status = {k: v for k, v in first.status.items() if v is not None}
    before = given.mount(target=SELECTOR, status=status)
    again = [says(M, "a", mount=before), says(I, "b", mount=before)]
    assert rendered(*again, mount=before).status is None
    assert rendered(says(None, "a", mount=before), again[1], mount=before).status is None


def test_who_says_nothing_new_takes_nothing_back() -> None:
    first = rendered(says(M, "a"), says(W, "b", is_reserved=True))
    assert conditions(first)["Reserved"] == ("True", "Reserved")
    assert first.status is not None
    before = given.mount(target=SELECTOR, status=dict(first.status))
    again = rendered(says(M, "a", mount=before), says(None, "b", mount=before), mount=before)
    assert again.status is None


def test_an_edit_counts_as_looked_at_only_when_it_was_in_every_pod() -> None:
    edited = selecting(row("a"), row("b"), ready="True", metadata={"generation": 2})
    silent = rendered(says(None, "a", mount=edited), says(I, "b", mount=edited), mount=edited)
    assert silent.status is not None
    assert silent.status["observedGeneration"] == 1
    told = rendered(says(M, "a", mount=edited), says(I, "b", mount=edited), mount=edited)
    assert told.status is not None
    assert told.status["observedGeneration"] == 2


def test_what_is_amiss_stays_so_while_its_pod_says_nothing_new() -> None:
    mount = selecting(row("a"), row("b"), ready="True")
    amiss = {"type": "Degraded", "status": "True", "reason": "DeviceUnhealthy", "message": "vcs1."}
    whole = mount.model_dump(mode="json", by_alias=True)
    whole["status"]["conditions"].append(amiss)
    mount = DeviceMount.model_validate(whole)
    found = rendered(says(None, "a", mount=mount), says(I, "b", mount=mount), mount=mount)
    assert conditions(found)["Degraded"] == ("True", "DeviceUnhealthy")
    assert [event.reason for event in found.events] == ["Insufficient"]
