# SPDX-License-Identifier: Apache-2.0
"""spec.lifetime: what is counted, from when, and that no clock makes it go wrong badly."""

from datetime import UTC, datetime
from typing import Any

import pytest

from devicemount_operator.api.v1alpha1 import DeviceMount, Lifetime, LifetimeStatus
from devicemount_operator.decide import chain, lifetime
from devicemount_operator.decide.decision import DeleteMount
from devicemount_operator.decide.observation import GrantPhase, PodPhase, TargetAbsent
from devicemount_operator.reasons import Reason
from unit.operator import given
from unit.operator.given import WALL

HOUR = 3600.0
DAY = 24 * HOUR
CREATED = WALL - DAY
EIGHT = {"expireAfter": "8h"}
GOES = {"deleteWithTarget": True}


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def counted(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What status.lifetime says, as the API server gives it."""
    times = {name: at(when).isoformat() for name, when in changes.items()}
    had = {"target": "notebook-0"} if "since" in times and spec.get("deleteWithTarget") else {}
    return {**spec, **had, **times}


def mount(
    spec: dict[str, Any],
    before: dict[str, Any] | None = None,
    *,
    row_since: float | None = None,
    created: float = CREATED,
    **more: Any,
) -> DeviceMount:
    rows = [] if row_since is None else [{"podUID": "a", "since": at(row_since).isoformat()}]
    return given.mount(
        metadata={"creationTimestamp": at(created).isoformat(), **more.pop("metadata", {})},
        status={"observedGeneration": 1, "targets": rows, "lifetime": before},
        lifetime=spec,
        **more,
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8h", 8 * HOUR), ("1h30m", 5400), ("90s", 90), ("1500ms", 1.5), ("1h1m1s1ms", 3661.001)],
)
def test_a_duration_is_read_as_kubernetes_writes_it(text: str, seconds: float) -> None:
    assert Lifetime.model_validate({"expireAfter": text}).expire_after_s == seconds


LEFT = [
    pytest.param(mount({}), None, None, id="nothing is to end"),
    pytest.param(mount(EIGHT), None, None, id="nothing is granted yet"),
    pytest.param(mount(EIGHT), WALL - HOUR, 7 * HOUR, id="granted, and status does not say it yet"),
    pytest.param(
        mount(EIGHT, counted(EIGHT, since=WALL - 2 * HOUR)),
        WALL - HOUR,
        6 * HOUR,
        id="what status counts from stays although the container was restarted since",
    ),
    pytest.param(mount(EIGHT, counted(EIGHT, since=WALL - 9 * HOUR)), None, -HOUR, id="it is over"),
    pytest.param(
        mount(EIGHT, counted({"expireAfter": "1h"}, since=WALL - 9 * HOUR)),
        None,
        None,
        id="it was over, and spec.lifetime was edited",
    ),
    pytest.param(
        mount({**EIGHT, **GOES}, counted(EIGHT, since=WALL - 9 * HOUR)),
        None,
        None,
        id="any edit of spec.lifetime counts anew",
    ),
    pytest.param(
        mount(EIGHT, counted(EIGHT, since=WALL + 50)),
        None,
        8 * HOUR,
        id="the node's clock is ahead: never more than the whole time",
    ),
    pytest.param(
        mount(EIGHT, counted(EIGHT, since=CREATED - HOUR)),
        None,
        None,
        id="a backup brought back the status of another object",
    ),
]


@pytest.mark.parametrize(("seen", "granted_wall", "expected"), LEFT)
def test_time_left(seen: DeviceMount, granted_wall: float | None, expected: float | None) -> None:
    left = lifetime.left(seen, steady=WALL, granted_wall=granted_wall)
    assert left == (None if expected is None else pytest.approx(expected, abs=1))


def written(seen: DeviceMount, *granted: float, gone: bool | None = None) -> LifetimeStatus | None:
    times = [("notebook-0", at(when)) for when in granted]
    return lifetime.to_status(seen, granted=times, is_target_gone=gone, steady=WALL)


def status(spec: dict[str, Any], **times: float) -> LifetimeStatus:
    said = counted(spec, **times)
    if "since" in times and "expireAfter" in spec:
        assert spec == EIGHT
        said["expires"] = at(times["since"] + 8 * HOUR).isoformat()
    return LifetimeStatus.model_validate(said)


WRITTEN = [
    pytest.param(mount({}), (WALL,), None, None, id="spec sets nothing"),
    pytest.param(mount(EIGHT), (), None, status(EIGHT), id="nothing is granted yet"),
    pytest.param(
        mount(EIGHT),
        (WALL - 5, WALL - 9),
        None,
        status(EIGHT, since=WALL - 9),
        id="counted from the first of several",
    ),
    pytest.param(
        mount(EIGHT),
        (CREATED - DAY,),
        None,
        status(EIGHT, since=CREATED),
        id="a node whose clock is behind: not before the object was created",
    ),
    pytest.param(
        mount(EIGHT),
        (WALL + DAY,),
        None,
        status(EIGHT, since=WALL),
        id="a node whose clock is ahead: not later than now",
    ),
    pytest.param(
        mount(EIGHT, counted(EIGHT, since=WALL - HOUR)),
        (WALL - 5,),
        None,
        status(EIGHT, since=WALL - HOUR),
        id="the container was restarted: the time goes on",
    ),
    pytest.param(
        mount(EIGHT, counted(EIGHT, since=WALL - HOUR)),
        (),
        None,
        status(EIGHT, since=WALL - HOUR),
        id="the pod is being made again: the time goes on",
    ),
    pytest.param(
        mount(EIGHT, row_since=WALL - DAY),
        (WALL - DAY,),
        None,
        status(EIGHT, since=WALL),
        id="the limit came long after the mount: counted from the edit",
    ),
    pytest.param(
        mount(EIGHT, counted({"expireAfter": "1h"}, since=WALL - 1800), row_since=WALL - 1800),
        (WALL - 1800,),
        None,
        status(EIGHT, since=WALL),
        id="the limit was changed in time: counted from the edit",
    ),
    pytest.param(
        mount(EIGHT, counted({"expireAfter": "1h"}, since=WALL - DAY)),
        (),
        None,
        status(EIGHT),
        id="it was over, and was edited: counted from the next mount",
    ),
    pytest.param(
        mount(EIGHT, counted(EIGHT, since=WALL - HOUR), suspend=True),
        (),
        None,
        status(EIGHT),
        id="suspended in time: counted from the next mount",
    ),
    pytest.param(
        mount(EIGHT, counted(EIGHT, since=WALL - DAY), suspend=True),
        (),
        None,
        status(EIGHT, since=WALL - DAY),
        id="suspended after it was over: it stays so",
    ),
    pytest.param(
        mount(EIGHT, counted(EIGHT, since=WALL + DAY), row_since=WALL - 5),
        (WALL - 5,),
        None,
        status(EIGHT, since=WALL),
        id="counted from a time to come, of a clock that was wrong: counted from now",
    ),
    pytest.param(
        mount(GOES, counted(GOES, since=WALL - HOUR)),
        (),
        True,
        status(GOES, since=WALL - HOUR, targetGone=WALL),
        id="the target is gone since now",
    ),
    pytest.param(
        mount(GOES, counted(GOES, since=WALL - HOUR, targetGone=WALL - 20)),
        (),
        None,
        status(GOES, since=WALL - HOUR, targetGone=WALL - 20),
        id="the target was gone when somebody last looked",
    ),
    pytest.param(
        mount(GOES, counted(GOES, since=WALL - HOUR, targetGone=WALL - 20)),
        (),
        False,
        status(GOES, since=WALL - HOUR),
        id="the target has come again",
    ),
    pytest.param(mount(GOES), (), True, status(GOES), id="the target was never there"),
    pytest.param(
        mount(
            GOES,
            counted(GOES, since=WALL - HOUR, targetGone=WALL - 20),
            target={"podName": "yet-to-come"},
        ),
        (WALL - HOUR,),
        True,
        status(GOES, since=WALL - HOUR),
        id="another pod is named by now, which was never there",
    ),
]


@pytest.mark.parametrize(("seen", "granted", "gone", "expected"), WRITTEN)
def test_what_is_counted(
    *,
    seen: DeviceMount,
    granted: tuple[float, ...],
    gone: bool | None,
    expected: LifetimeStatus | None,
) -> None:
    found = written(seen, *granted, gone=gone)
    assert found == expected
    if found is not None:  # what was written is read the same: it is not written again
        again = seen.status.model_copy(update={"lifetime": found})
        assert written(seen.model_copy(update={"status": again}), *granted, gone=gone) == found


def test_it_is_looked_at_when_the_time_is_over_and_not_before() -> None:
    seen = given.mounted(mount=mount(EIGHT, counted(EIGHT, since=WALL - HOUR)))
    assert chain.decide(seen).requeue_after_s == pytest.approx(7 * HOUR)


def test_a_mount_whose_time_is_over_is_given_back_and_the_object_stays() -> None:
    seen = given.mounted(mount=mount(EIGHT, counted(EIGHT, since=WALL - 9 * HOUR)))
    decision = chain.decide(seen)
    assert decision.report is not None
    assert decision.report.reason is Reason.EXPIRED
    assert decision.report.message == (
        "spec.lifetime.expireAfter (8h) is over, the devices are given back. Edit spec.lifetime to "
        "mount again: the time begins anew."
    )
    assert [type(action).__name__ for action in decision.actions] == ["Remove", "DeleteShadowPod"]
    idle = given.observation(mount=seen.mount)
    assert chain.decide(idle).actions == ()


ABSENT = TargetAbsent()
ENDED = given.target(phase=PodPhase.SUCCEEDED)
OUTLIVED = [
    pytest.param(ABSENT, counted(GOES, since=WALL - HOUR, targetGone=WALL - 31), True, id="gone"),
    pytest.param(ENDED, counted(GOES, since=WALL - HOUR, targetGone=WALL - 31), True, id="ended"),
    pytest.param(
        ABSENT,
        counted(GOES, since=WALL - HOUR, targetGone=WALL - 29),
        False,
        id="it may be made again",
    ),
    pytest.param(
        given.target(),
        counted(GOES, since=WALL - HOUR, targetGone=WALL - 31),
        False,
        id="it has come again",
    ),
    pytest.param(None, counted(GOES, since=WALL - HOUR, targetGone=WALL - 31), False, id="unread"),
    pytest.param(ABSENT, None, False, id="it was never there"),
    pytest.param(
        ABSENT,
        counted(GOES, since=CREATED - DAY, targetGone=CREATED - HOUR),
        False,
        id="a backup brought that back",
    ),
    pytest.param(
        ABSENT,
        {**counted(GOES, since=WALL - HOUR, targetGone=WALL - 31), "target": "another"},
        False,
        id="another pod was meant when that was gone, and this one may be yet to come",
    ),
]


@pytest.mark.parametrize(("target", "before", "goes"), OUTLIVED)
def test_a_mount_goes_with_its_target(
    *,
    target: Any,
    before: dict[str, Any] | None,
    goes: bool,
) -> None:
    seen = given.observation(mount=mount(GOES, before), target=target)
    assert (DeleteMount() in chain.decide(seen).actions) is goes
    stays = given.observation(mount=mount({}, before), target=target)
    assert DeleteMount() not in chain.decide(stays).actions


def test_what_the_target_had_is_released_before_the_mount_is_deleted() -> None:
    before = counted(GOES, since=WALL - HOUR, targetGone=WALL - 31)
    ended = given.agent(grants=(given.grant(GrantPhase.TARGET_ENDED),))
    seen = given.mounted(mount=mount(GOES, before), target=ABSENT, agent=ended)
    decision = chain.decide(seen)
    names = [type(action).__name__ for action in decision.actions]
    assert names == ["Remove", "DeleteShadowPod", "DeleteMount"]
    assert [event.message for event in decision.events] == [
        "pod notebook-0 is gone for good, and spec.lifetime.deleteWithTarget is true"
    ]
