# SPDX-License-Identifier: Apache-2.0
"""Pods watched to their end."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from devicemount_operator import witness
from devicemount_operator.cluster import ObjectKey
from devicemount_operator.decide.split import NAMED
from devicemount_operator.reflector import Changed, Listed, Reflector, Selection
from devicemount_operator.witness import Case, Witness
from unit.operator import given

CASE, KEY = Case("mount", NAMED), ObjectKey("team-a", "notebook-0")


def pod(uid: str = given.TARGET_UID) -> dict[str, Any]:
    ended = {"name": "notebook", "state": {"terminated": {}}, "containerID": "x://c0ffee"}
    return {
        "metadata": {"name": KEY.name, "uid": uid, "deletionTimestamp": "2026-11-26T07:00:00Z"},
        "spec": {"nodeName": given.NODE, "containers": [{"name": "notebook"}]},
        "status": {"phase": "Running", "containerStatuses": [ended]},
    }


class Told(Reflector):
    """Tells what it is given, then nothing any more."""

    def __init__(self, *events: Listed | Changed) -> None:
        self._events = events

    async def events(self) -> AsyncGenerator[Listed | Changed, None]:
        for event in self._events:
            yield event
        await asyncio.Event().wait()


async def watched(*events: Listed | Changed) -> tuple[Witness, list[Selection], list[str]]:
    """Watch a pod until all of these were told."""
    asked: list[Selection] = []
    woken: list[str] = []

    def reflector(selection: Selection) -> Reflector:
        asked.append(selection)
        return Told(*events)

    made = Witness(reflector=reflector, wake=woken.append)
    made.watch(CASE, KEY, uid=given.TARGET_UID)
    made.watch(CASE, KEY, uid=given.TARGET_UID)
    for _ in range(10):
        await asyncio.sleep(0)
    return made, asked, woken


async def test_the_last_object_is_kept_and_who_waits_for_it_is_woken() -> None:
    made, asked, woken = await watched(Changed(pod(), deleted=False), Changed(pod(), deleted=True))
    last = made.last(CASE)
    assert last is not None
    assert last.has_ended
    assert woken == ["mount"]
    assert [(one.path, one.field_selector) for one in asked] == [
        ("/api/v1/namespaces/team-a/pods", "metadata.name=notebook-0")
    ]
    made.keep("another", parts=())
    made.keep("mount", parts={NAMED})
    assert made.last(CASE) is not None
    made.keep("mount", parts=())
    assert made.last(CASE) is None


@pytest.mark.parametrize(
    "events",
    [
        pytest.param((Changed(pod(), deleted=False),), id="it lives"),
        pytest.param((Listed((), "1"),), id="it went unseen: nothing is proved"),
        pytest.param((Changed(pod("another"), deleted=True),), id="another pod of that name went"),
    ],
)
async def test_nothing_else_is_its_end(events: tuple[Listed | Changed, ...]) -> None:
    made, _, woken = await watched(*events)
    assert made.last(CASE) is None
    assert woken == []
    await made.close()


async def test_no_more_than_a_bounded_number_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "MAX_WATCHED", 1)
    made, asked, _ = await watched()
    made.watch(Case("other", NAMED), KEY, uid=given.TARGET_UID)
    assert len(asked) == 1
    assert made.last(Case("other", NAMED)) is None
    await made.close()
