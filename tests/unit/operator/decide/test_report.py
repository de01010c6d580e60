# SPDX-License-Identifier: Apache-2.0
"""Reports become status: whole, bounded, and written only when it says something new."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from devicemount_operator.api import v1alpha1 as api
from devicemount_operator.decide import chain, merge, outcome, report
from devicemount_operator.decide.decision import Decision, Report
from devicemount_operator.decide.merge import Voice
from devicemount_operator.decide.needs import needs_target
from devicemount_operator.decide.observation import (
    GrantPhase,
    Milestones,
    Observation,
    PodPhase,
    PodUID,
    TargetAbsent,
)
from devicemount_operator.decide.size import MAX_BYTES
from devicemount_operator.decide.split import NAMED, Part
from devicemount_operator.reasons import TABLE, Kind, Reason
from unit.operator import given
from unit.operator.decide.kstatus import Verdict, verdict
from unit.operator.given import NOW, SHADOW_NAME, WALL

THEN = "2023-11-14T22:13:20Z"  # WALL
LATER = "2023-11-14T22:14:20Z"

READY = {
    "observedGeneration": 1,
    "ready": "1/1",
    "lifetime": None,
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Mounted",
            "message": "testbed.devicemount.io/vcs vcs1 opens in container notebook.",
            "observedGeneration": 1,
            "lastTransitionTime": THEN,
        },
        *(
            {
                "type": kind,
                "status": "True",
                "reason": kind,
                "message": "",
                "observedGeneration": 1,
                "lastTransitionTime": THEN,
            }
            for kind in ("TargetFound", "Reserved", "Grafted")
        ),
    ],
    "targets": [
        {
            "podUID": given.TARGET_UID,
            "podName": "notebook-0",
            "nodeName": "node1",
            "containerName": "notebook",
            "containerID": "c0ffee",
            "phase": "Mounted",
            "shadowPods": [SHADOW_NAME],
            "since": "2023-11-14T22:13:19Z",
            "devices": [
                {
                    "resource": given.RESOURCE,
                    "id": "vcs1",
                    "nodes": [
                        {"path": "/dev/vcs1", "type": "c", "major": 7, "minor": 1, "access": "rw"}
                    ],
                    "mounts": [],
                }
            ],
            "holders": [],
            "timings": {"reservedMs": 70.0, "grantedMs": 75.0, "readyMs": 200.0},
            "reason": "Mounted",
            "message": "testbed.devicemount.io/vcs vcs1 opens in container notebook.",
        }
    ],
}


def rendered(observation: Observation) -> report.Rendered:
    said = chain.decide(observation).report
    assert said is not None
    return report.render(observation, said)


def merged(observation: Observation, decision: Decision) -> report.Rendered:
    """Return what is written after a pass in which that was decided."""
    voice = Voice(Part(key=NAMED, pod_name="notebook-0"), observation, decision.report)
    return merge.render(observation.mount, (voice,), left_out=0)


def written(observation: Observation) -> dict[str, Any]:
    status = rendered(observation).status
    assert status is not None
    return dict(status)


def conditions(status: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


def test_a_mounted_device_is_written_in_full() -> None:
    assert written(given.mounted()) == READY


def test_what_stands_already_is_not_written_again() -> None:
    later = given.mounted(
        mount=given.mount(status=READY), now=NOW + 60, wall=WALL + 60, milestones=Milestones()
    )
    assert rendered(later) == report.Rendered(None, ())


def test_absent_fields_are_null_so_that_a_merge_patch_takes_them_away() -> None:
    status = written(given.mounted(mount=given.mount(status=READY, suspend=True)))
    assert status == {
        "observedGeneration": 1,
        "ready": None,
        "lifetime": None,
        "targets": None,
        "conditions": [
            {
                "type": "Suspended",
                "status": "True",
                "reason": "Suspended",
                "message": "spec.suspend is true, the devices are given back. Set spec.suspend to "
                "false to mount again.",
                "observedGeneration": 1,
                "lastTransitionTime": THEN,
            }
        ],
    }


def test_what_a_lifetime_does_not_count_any_more_is_taken_away_too() -> None:
    spec = {"expireAfter": "8h", "deleteWithTarget": True}
    since = datetime.fromtimestamp(WALL - 9, UTC)
    counted = {**spec, "since": since.isoformat(), "targetGone": THEN}
    again = given.mount(status={**READY, "lifetime": counted}, lifetime=spec)
    status = written(given.mounted(mount=again, target=given.target()))
    assert status["lifetime"] == {
        **spec,
        "since": since.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expires": (since + timedelta(hours=8)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "target": "notebook-0",
        "targetGone": None,
    }


@pytest.mark.parametrize(
    ("shadow_pod", "container_id"),
    [
        pytest.param(SHADOW_NAME, given.CONTAINER_ID, id="the same reservation"),
        pytest.param("dm-1-2-9", None, id="an earlier reservation, which is given back"),
    ],
)
def test_the_container_is_remembered_while_its_agent_is_silent(
    shadow_pod: str, container_id: str | None
) -> None:
    """Else an operator that starts then would take any end of the pod's containers for a proof."""
    row = {"podUID": given.TARGET_UID, "shadowPods": [shadow_pod], "nodeName": "node1"}
    before = {**READY, "targets": [{**row, "containerID": given.CONTAINER_ID}]}
    doubted = given.agent(nodes=frozenset(), grants=(given.grant(GrantPhase.WAITING),))
    seen = given.observation(
        mount=given.mount(status=before),
        shadows=(given.shadow(),),
        target=given.target(),
        node=given.node(),
        agent=doubted,
    )
    status = written(seen)
    assert conditions(status)["Ready"] == ("False", "AgentUnavailable")
    assert status["targets"][0].get("containerID") == container_id


def test_a_transition_time_moves_only_when_the_condition_does() -> None:
    ready = given.mount(status=READY)
    gone = given.observation(
        mount=ready, target=TargetAbsent(), shadows=(given.shadow(),), wall=WALL + 60
    )
    times = {c["type"]: c["lastTransitionTime"] for c in written(gone)["conditions"]}
    assert times == dict.fromkeys(
        ["Ready", "Reconciling", "TargetFound", "Reserved", "Grafted"], LATER
    )
    edited = given.mounted(
        mount=given.mount(status=READY, metadata={"generation": 2}), wall=WALL + 60
    )
    status = written(edited)
    assert status["observedGeneration"] == 2
    assert {c["lastTransitionTime"] for c in status["conditions"]} == {THEN}


def test_a_target_that_is_not_there_leaves_no_row() -> None:
    ready = given.mount(status=READY)
    status = written(
        given.observation(mount=ready, target=TargetAbsent(), shadows=(given.shadow(),))
    )
    assert (status["targets"], status["ready"]) == (None, "0/1")
    assert conditions(status) == {
        "Ready": ("False", "TargetNotFound"),
        "Reconciling": ("True", "TargetNotFound"),
        "TargetFound": ("False", "TargetNotFound"),
        "Reserved": ("False", "TargetNotFound"),
        "Grafted": ("False", "TargetNotFound"),
    }


def test_a_device_that_cannot_be_given_back_stays_in_status_with_its_holders() -> None:
    observation = given.mounted(
        mount=given.deleted(status=READY), shadows=(given.shadow(), given.shadow(is_ours=False))
    )
    holders = (
        given.holder(17),
        given.holder(3, pod_uid=given.SHADOW_UID, container_id="feed"),
        given.holder(4, pod_uid="elsewhere", container_id="beef", blocking=False),
        given.holder(5, pod_uid="", container_id=""),
    )
    busy = given.refusal(Reason.DEVICE_BUSY, "", holders=holders, holders_total=4)
    said = chain.refused(observation, busy).report
    assert said is not None
    status = report.render(observation, said).status
    assert status is not None
    (row,) = status["targets"]
    assert row["phase"] == "Releasing"
    assert [device["id"] for device in row["devices"]] == ["vcs1"]
    assert row["timings"] == READY["targets"][0]["timings"]  # type: ignore[index]
    assert row["holders"] == [
        {
            "pid": 17,
            "command": "python train.py",
            "pod": "notebook-0",
            "container": "notebook",
            "blocking": True,
        },
        {
            "pid": 3,
            "command": "python train.py",
            "pod": SHADOW_NAME,
            "container": "feed",
            "blocking": True,
        },
        {
            "pid": 4,
            "command": "python train.py",
            "pod": "elsewhere",
            "container": "beef",
            "blocking": False,
        },
        {"pid": 5, "command": "python train.py", "blocking": True},
    ]
    assert conditions(status)["Grafted"] == ("True", "Grafted")
    assert conditions(status)["Ready"] == ("False", "DeviceBusy")


@pytest.mark.parametrize(
    "target",
    [
        TargetAbsent(),
        given.target(uid=PodUID("another")),
        given.target(phase=PodPhase.SUCCEEDED),
    ],
    ids=["its pod is gone", "another pod has its name", "its pod has ended"],
)
def test_a_device_that_another_pod_keeps_is_told_once_while_nothing_changes(target: Any) -> None:
    holders = (given.holder(pod_uid="elsewhere", container_id="beef"),)
    grant = given.grant(GrantPhase.BUSY, granted_wall=None, holders=holders, holders_total=1)
    busy = given.refusal(Reason.DEVICE_BUSY, "", holders=holders, holders_total=1, is_revoked=True)
    agent = given.agent(grants=(grant,), container="notebook")
    observation = given.mounted(mount=given.mount(status=READY), target=target, agent=agent)
    told = chain.refused(observation, busy)
    status = merged(observation, told).status
    assert status is not None
    for _ in range(5):
        assert told.requeue_after_s is not None
        observation = replace(observation, mount=given.mount(status=status), setback=told.setback)
        woken = replace(observation, target=None, now=observation.now + told.requeue_after_s / 2)
        assert not needs_target(woken)
        assert merged(woken, chain.decide(woken)) == report.Rendered(None, ())
        observation = replace(observation, now=observation.now + told.requeue_after_s)
        assert needs_target(observation), "the agent is asked again"
        told = chain.refused(observation, busy)
        assert merged(observation, told) == report.Rendered(None, ())


def test_a_restarted_operator_knows_no_timings_and_invents_none() -> None:
    status = written(given.mounted(milestones=Milestones(seen=NOW)))
    assert "timings" not in status["targets"][0]


def test_how_long_the_next_run_of_a_container_waited_is_not_measured_from_the_first_look() -> None:
    regrafted = given.agent(
        grants=(given.grant(restarts=1),), container="notebook", asked_for=given.mount().spec.target
    )
    status = written(given.mounted(agent=regrafted))
    assert "timings" not in status["targets"][0]


# Every reason, judged as tools judge it

EXPECTED = {
    Kind.READY: Verdict.CURRENT,
    Kind.SUSPENDED: Verdict.CURRENT,
    Kind.WAITING: Verdict.IN_PROGRESS,
    Kind.PERMANENT: Verdict.FAILED,
    Kind.DEGRADED: Verdict.CURRENT,
    Kind.NOTE: Verdict.CURRENT,
}


def said(reason: Reason, message: str = "m") -> Report:
    return Report(reason=reason, message=message, target=None)


@pytest.mark.parametrize("reason", Reason)
def test_kstatus_agrees_with_the_table(reason: Reason) -> None:
    observation = given.observation()
    status = report.render(observation, said(reason)).status
    assert (
        verdict({"metadata": {"generation": 1}, "status": status}) is EXPECTED[TABLE[reason].kind]
    )


def test_kstatus_waits_for_an_object_that_nobody_looked_at() -> None:
    fresh = {"metadata": {"generation": 1}, "status": {"observedGeneration": -1}}
    assert verdict(fresh) is Verdict.IN_PROGRESS


def test_kstatus_waits_while_an_edit_was_not_looked_at() -> None:
    assert verdict({"metadata": {"generation": 2}, "status": READY}) is Verdict.IN_PROGRESS


# Events


def test_becoming_ready_is_told_once() -> None:
    (event,) = rendered(given.mounted()).events
    assert (event.type.value, event.reason, event.message) == (
        "Normal",
        "Mounted",
        "testbed.devicemount.io/vcs vcs1 opens in container notebook.",
    )


def test_trouble_is_told_once_though_its_wording_changes() -> None:
    observation = given.observation()
    first = report.render(observation, said(Reason.INSUFFICIENT, "1 of 2"))
    assert [(e.type.value, e.reason) for e in first.events] == [("Warning", "Insufficient")]
    after = given.observation(mount=given.mount(status=dict(first.status or {})))
    second = report.render(after, said(Reason.INSUFFICIENT, "1 of 3"))
    assert second.status is not None
    assert second.events == ()


@pytest.mark.parametrize("reason", [Reason.RESERVING, Reason.GRAFTING])
def test_progress_is_no_news(reason: Reason) -> None:
    assert report.render(given.observation(), said(reason)).events == ()


# What is amiss though the devices open


def degraded(*reasons: str, **changes: Any) -> Observation:
    grant = given.grant(concerns=tuple(given.concern(reason) for reason in reasons))
    seen_by = given.agent(grants=(grant,), container="notebook")
    return given.mounted(agent=seen_by, **changes)


def test_a_concern_is_a_condition_and_a_warning_and_the_mount_stays_ready() -> None:
    found = rendered(degraded("LibrariesMissing", "VersionMismatch"))
    assert found.status is not None
    assert conditions(found.status)["Ready"] == ("True", "Mounted")
    (condition,) = [c for c in found.status["conditions"] if c["type"] == "Degraded"]
    assert condition["status"] == "True"
    assert condition["reason"] == "LibrariesMissing"
    assert condition["message"] == "libcuda.so.1 is absent. libcuda.so.1 is absent."
    assert verdict({"metadata": {"generation": 1}, "status": found.status}) is Verdict.CURRENT
    assert [(e.type.value, e.reason, e.message) for e in found.events][1:] == [
        (
            "Warning",
            "Degraded",
            "LibrariesMissing: libcuda.so.1 is absent. libcuda.so.1 is absent.",
        )
    ]


def test_it_is_told_once_and_again_when_it_is_something_else() -> None:
    stands = given.mount(status=written(degraded("LibrariesMissing")))
    assert rendered(degraded("LibrariesMissing", mount=stands)).events == ()
    (event,) = rendered(degraded("DeviceUnhealthy", mount=stands)).events
    assert (event.type.value, event.reason) == ("Warning", "Degraded")


def test_when_it_is_over_the_condition_goes_and_that_is_told() -> None:
    stands = given.mount(status=written(degraded("DeviceUnhealthy")))
    found = rendered(given.mounted(mount=stands))
    assert found.status is not None
    assert "Degraded" not in conditions(found.status)
    (event,) = found.events
    assert (event.type.value, event.reason, event.message) == (
        "Normal",
        "Recovered",
        "DeviceUnhealthy is over",
    )


def test_a_note_is_no_degradation() -> None:
    found = rendered(degraded("NotIsolated"))
    assert found.status is not None
    assert "Degraded" not in conditions(found.status)
    assert [event.reason for event in found.events] == ["Mounted"]


def test_what_does_not_open_is_not_called_degraded() -> None:
    stands = given.mount(status=written(degraded("DeviceUnhealthy")))
    found = report.render(given.observation(mount=stands), said(Reason.TARGET_NOT_RUNNING))
    assert found.status is not None
    assert "Degraded" not in conditions(found.status)
    assert [event.reason for event in found.events] == ["TargetNotRunning"]


def test_what_came_with_a_device_is_written() -> None:
    device = given.device(
        mounts=("/usr/lib/libx.so",), env_file="/run/devicemount/gpu.env", health="Healthy"
    )
    seen_by = given.agent(grants=(given.grant(devices=(device,)),), container="notebook")
    status = written(given.mounted(agent=seen_by))
    (row,) = status["targets"][0]["devices"]
    assert row["mounts"] == ["/usr/lib/libx.so"]
    assert (row["envFile"], row["health"]) == ("/run/devicemount/gpu.env", "Healthy")
    assert status["conditions"][0]["message"] == (
        "testbed.devicemount.io/vcs vcs1 opens in container notebook, where "
        "/run/devicemount/gpu.env has the environment that it needs."
    )


@pytest.mark.parametrize("health", ["", "Sick"])
def test_a_health_that_nobody_knows_is_left_out(health: str) -> None:
    seen_by = given.agent(grants=(given.grant(devices=(given.device(health=health),)),))
    status = written(given.mounted(agent=seen_by, mount=given.mount(container="notebook")))
    assert "health" not in status["targets"][0]["devices"][0]


# Bounds


def monster() -> Observation:
    nodes = tuple(
        replace(given.device().nodes[0], path="/dev/" + "x" * 600, access="rwmrwm")
        for _ in range(api.MAX_NODES + 9)
    )
    devices = tuple(
        given.device(
            "i" * 300,
            resource="",
            nodes=nodes if n == 0 else (),
            mounts=("", "/" + "m" * 600) * api.MAX_MOUNTS if n == 0 else (),
            env_file="/" + "e" * 200,
        )
        for n in range(api.MAX_DEVICES + 1)
    )
    return given.mounted(
        agent=given.agent(
            grants=(given.grant(devices=devices, concerns=(given.concern("R" * 99, "m" * 4000),)),),
            container="notebook",
        )
    )


def test_whatever_an_agent_says_fits_the_schema() -> None:
    status = written(monster())
    (row,) = status["targets"]
    assert len(row["devices"]) == api.MAX_DEVICES
    assert "513 devices, cut here." in row["message"]
    assert len(row["devices"][0]["nodes"]) == api.MAX_NODES
    assert len(row["devices"][0]["nodes"][0]["path"]) == 512
    assert len(row["devices"][0]["mounts"]) == api.MAX_MOUNTS
    assert "has 201 files, cut here." in row["message"]
    api.Status.model_validate(status)


def test_however_many_files_devices_have_status_fits_into_an_object() -> None:
    node = replace(given.device().nodes[0], path="/dev/" + "x" * 600)
    device = given.device(
        "i" * 200,
        resource="r" * 300,
        nodes=(node,) * api.MAX_NODES,
        mounts=("/" + "m" * 600,) * api.MAX_MOUNTS,
        env_file="/" + "e" * 600,
    )
    grant = given.grant(devices=(device,) * 4000)
    status = written(given.mounted(agent=given.agent(grants=(grant,), container="notebook")))
    (row,) = status["targets"]
    assert len(json.dumps(status)) < MAX_BYTES
    assert len(row["devices"]) == api.MAX_DEVICES
    assert sum(len(d["nodes"]) + len(d["mounts"]) for d in row["devices"]) == 0
    assert "4000 devices, cut here." in row["message"]
    assert "has 128 files, " in row["message"]
    assert row["message"].endswith("Not listed, since all of it is too long: files.")
    assert len(row["message"]) <= api.MAX_MESSAGE
    api.Status.model_validate(status)


def test_whatever_holds_a_device_fits_the_schema() -> None:
    holders = tuple(
        given.holder(-1, command="\x1b[31m\ud800\n" + "é" * 500, container_id="c" * 999)
        for _ in range(100)
    )
    observation = given.mounted()
    busy = given.refusal(Reason.DEVICE_BUSY, "", holders=holders, holders_total=4000)
    said_ = chain.refused(given.mounted(mount=given.deleted()), busy).report
    assert said_ is not None
    status = report.render(observation, said_).status
    assert status is not None
    held = status["targets"][0]["holders"]
    assert len(held) == api.MAX_HOLDERS
    assert len(held[0]["command"]) == api.MAX_COMMAND
    assert held[0]["command"].startswith("\\x1b[31m\N{REPLACEMENT CHARACTER}\\néé")
    assert held[0]["command"].endswith("... (511 characters)")
    assert "4000 processes have a device open" in status["conditions"][0]["message"]
    str(status).encode()


def test_a_long_text_is_cut_and_says_so() -> None:
    status = report.render(given.observation(), said(Reason.NOT_ALLOWED, "p" * 5000)).status
    assert status is not None
    message = status["conditions"][0]["message"]
    assert len(message) == api.MAX_MESSAGE
    assert message.endswith("... (5000 characters)")
    (event,) = report.render(given.observation(), said(Reason.NOT_ALLOWED, "p" * 5000)).events
    assert len(event.message) == 1024


def test_a_grant_that_is_not_open_shows_no_device() -> None:
    ended = given.observation(
        shadows=(given.shadow(seen=NOW - 9),),
        agent=given.agent(grants=(given.grant(GrantPhase.TARGET_ENDED),)),
    )
    shown = outcome.reserved_target(ended)
    assert shown is not None
    assert (shown.devices, shown.container_id, shown.granted_wall) == ((), None, None)
