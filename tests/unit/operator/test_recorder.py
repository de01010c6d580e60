# SPDX-License-Identifier: Apache-2.0
"""Events: each fact once, and none of them worth a failed pass."""

import re
from dataclasses import replace

import pytest

from devicemount_operator import errors
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.recorder import REPEATS_FOR_S, About, Recorder
from devicemount_operator.transport import JsonObject

DM = About("devicemount.io/v1alpha1", "DeviceMount", "team-a", "dm", "uid-1")


class Events(Cluster):
    """Takes Events and writes nothing."""

    def __init__(self) -> None:
        self.created: list[JsonObject] = []
        self.patched: list[JsonObject] = []
        self.refusal: errors.ApiError | None = None

    async def create_event(self, namespace: str, body: JsonObject) -> JsonObject:
        if self.refusal is not None:
            raise self.refusal
        self.created.append(body)
        return body

    async def patch_event(self, key: ObjectKey, body: JsonObject) -> JsonObject:
        self.patched.append({"name": key.name, **body})
        return body


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_fact_that_is_told_again_counts_up_the_event_that_is_there() -> None:
    events, clock = Events(), Clock()
    recorder = Recorder(events, identity="operator-1", clock=clock)
    for _ in range(3):
        await recorder.record(DM, kind="Warning", reason="DeviceBusy", message="held by 7")
    assert [event["count"] for event in events.created] == [1]
    assert [patch["count"] for patch in events.patched] == [2, 3]
    assert events.patched[0]["name"] == events.created[0]["metadata"]["name"]


async def test_another_message_and_an_old_fact_are_new_events() -> None:
    events, clock = Events(), Clock()
    recorder = Recorder(events, identity="operator-1", clock=clock)
    await recorder.record(DM, kind="Warning", reason="DeviceBusy", message="held by 7")
    await recorder.record(DM, kind="Warning", reason="DeviceBusy", message="held by 8")
    clock.now = REPEATS_FOR_S + 1
    await recorder.record(DM, kind="Warning", reason="DeviceBusy", message="held by 8")
    assert len(events.created) == 3
    assert events.patched == []


async def test_an_event_that_is_refused_is_logged_and_told_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = Events()
    recorder = Recorder(events, identity="operator-1")
    events.refusal = errors.Unreachable("gone fishing")
    await recorder.record(DM, kind="Normal", reason="Mounted", message="loop0")
    assert "gone fishing" in caplog.text
    events.refusal = None
    await recorder.record(DM, kind="Normal", reason="Mounted", message="loop0")
    assert [event["reason"] for event in events.created] == ["Mounted"]


@pytest.mark.parametrize("name", ["d" * 253, "d" * 235 + "-" + "d" * 17, "d" * 235 + ".d" * 9])
async def test_an_object_with_a_long_name_has_events_too(name: str) -> None:
    events = Events()
    recorder = Recorder(events, identity="operator-1", clock=Clock())
    await recorder.record(replace(DM, name=name), kind="Normal", reason="Mounted", message="it is")
    (event,) = events.created
    assert event["involvedObject"]["name"] == name
    assert len(event["metadata"]["name"]) <= 253
    assert re.fullmatch(r"d[-.d]*d\.[0-9a-f]+", event["metadata"]["name"])
