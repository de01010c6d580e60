# SPDX-License-Identifier: Apache-2.0
"""What agents say, by which way it came and when."""

import asyncio
from dataclasses import replace

import pytest

from devicemount_operator.decide.observation import (
    AgentView,
    Grant,
    GrantPhase,
    NodeName,
    Place,
    PodUID,
)
from devicemount_operator.decide.split import PartKey
from devicemount_operator.memory import Memories, Memory, PartMemory

NODE = NodeName("node1")
PLACE = Place(node=NODE, target_uid=PodUID("target"))
A, B = PodUID("a"), PodUID("b")


def grant(uid: PodUID, phase: GrantPhase) -> Grant:
    return Grant(
        shadow_uid=uid,
        shadow_name=f"dm-{uid}",
        place=PLACE,
        phase=phase,
        devices=(),
        holders=(),
        holders_total=0,
        container_id=None,
        granted_wall=None,
        timings_ms={},
    )


def view(memory: Memory) -> AgentView:
    return memory.agent_view(PartMemory(seen=0.0), frozenset())


def phases(memory: Memory) -> dict[PodUID, GrantPhase]:
    return {g.shadow_uid: g.phase for g in memory.grants()}


def test_a_list_that_was_asked_for_before_an_answer_came_does_not_contradict_it() -> None:
    memory = Memory()
    memory.answered([grant(A, GrantPhase.GRANTED)], now=10.0)
    assert not memory.listed(NODE, [], asked=9.0)
    assert not memory.listed(NODE, [grant(A, GrantPhase.WAITING)], asked=9.0)
    assert phases(memory) == {A: GrantPhase.GRANTED}


def test_nor_when_what_it_speaks_of_was_given_back_and_is_forgotten_by_then() -> None:
    memory = Memory()
    memory.answered([grant(A, GrantPhase.GRANTED)], now=10.0)
    memory.answered([grant(A, GrantPhase.REMOVED)], now=12.0)
    memory.prune([])
    assert not memory.listed(NODE, [grant(A, GrantPhase.GRANTED)], asked=11.0)
    assert phases(memory) == {}
    assert not memory.listed(NODE, [], asked=100.0)


def test_what_a_silent_agent_said_is_not_taken_for_granted() -> None:
    memory = Memory()
    memory.answered([grant(A, GrantPhase.GRANTED), grant(B, GrantPhase.REMOVED)], now=10.0)
    assert not memory.doubt(NodeName("another"))
    assert memory.doubt(NODE)
    assert phases(memory) == {A: GrantPhase.WAITING, B: GrantPhase.REMOVED}
    assert not memory.doubt(NODE)
    assert memory.listed(NODE, [grant(A, GrantPhase.GRANTED)], asked=11.0)
    assert phases(memory)[A] is GrantPhase.GRANTED


def test_nor_is_what_it_said_of_devices_that_are_waited_for_and_open_still() -> None:
    memory = Memory()
    waits = replace(grant(A, GrantPhase.BUSY), granted_wall=1.0)
    memory.answered([waits, grant(B, GrantPhase.BUSY)], now=10.0)
    assert memory.doubt(NODE)
    assert phases(memory) == {A: GrantPhase.WAITING, B: GrantPhase.BUSY}
    assert not memory.doubt(NODE)


@pytest.mark.parametrize(
    ("said", "news", "after"),
    [
        ([GrantPhase.GRANTED], False, {A: GrantPhase.GRANTED}),
        ([GrantPhase.TARGET_ENDED], True, {A: GrantPhase.TARGET_ENDED}),
        ([], True, {}),
    ],
    ids=["the same", "another phase", "nothing any more"],
)
def test_a_later_list_is_the_truth(
    said: list[GrantPhase],
    news: bool,  # noqa: FBT001
    after: dict[PodUID, GrantPhase],
) -> None:
    memory = Memory()
    memory.answered([grant(A, GrantPhase.GRANTED)], now=10.0)
    assert memory.listed(NODE, [grant(A, phase) for phase in said], asked=11.0) is news
    assert phases(memory) == after


def test_what_repeats_what_is_known_of_a_node_is_no_news() -> None:
    memories = Memories()
    assert memories.agrees("mount", NODE, [grant(A, GrantPhase.REMOVED)])
    assert not memories.agrees("mount", NODE, [grant(A, GrantPhase.GRANTED)])
    memories.of("mount").answered([grant(A, GrantPhase.GRANTED)], now=10.0)
    assert memories.agrees("mount", NODE, [grant(A, GrantPhase.GRANTED)])
    assert not memories.agrees("mount", NODE, [grant(A, GrantPhase.BUSY)])
    assert not memories.agrees("mount", NODE, [])
    assert memories.agrees("mount", NodeName("another"), [])
    assert memories.uids() == ("mount",)


def test_since_when_a_container_has_ended_is_remembered_until_another_runs() -> None:
    memory = Memory()
    memory.answered([grant(A, GrantPhase.GRANTED)], now=10.0)
    memory.listed(NODE, [grant(A, GrantPhase.TARGET_ENDED)], asked=11.0)
    memory.answered([grant(A, GrantPhase.TARGET_ENDED)], now=12.0)
    assert view(memory).ended == {A: 11.0}
    memory.listed(NODE, [grant(A, GrantPhase.GRANTED)], asked=13.0)
    assert view(memory).ended == {}


def test_a_list_of_one_node_says_nothing_about_another() -> None:
    memory = Memory()
    memory.answered([grant(A, GrantPhase.GRANTED)], now=10.0)
    assert not memory.listed(NodeName("node2"), [], asked=11.0)
    assert phases(memory) == {A: GrantPhase.GRANTED}


def test_what_was_given_back_is_forgotten_with_its_shadow_pod() -> None:
    memory = Memory()
    memory.answered([grant(A, GrantPhase.REMOVED), grant(B, GrantPhase.LOST)], now=10.0)
    memory.released.add(A)
    memory.prune([A, B])
    assert phases(memory).keys() == {A, B}
    memory.prune([])
    assert phases(memory) == {B: GrantPhase.LOST}
    assert memory.released == set()


def test_what_was_released_stays_so_though_lists_do_not_name_it_while_its_pod_ends() -> None:
    memory = Memory()
    memory.answered([grant(A, GrantPhase.REMOVED)], now=10.0)
    memory.released.add(A)
    assert memory.listed(NODE, [grant(B, GrantPhase.WAITING)], asked=11.0)
    memory.prune([A, B])
    assert view(memory).released == {A}


def test_mounts_of_which_an_agent_only_says_that_they_are_gone_are_not_remembered() -> None:
    memories = Memories()
    assert not memories.listed("gone", NODE, [grant(A, GrantPhase.REMOVED)], asked=1.0)
    assert memories.uids() == ()
    assert memories.listed("left", NODE, [grant(B, GrantPhase.GRANTED)], asked=1.0)
    assert memories.on(NODE) == {"left"}
    assert memories.nodes() == {NODE}


async def test_what_is_given_back_for_one_target_pod_ends_no_apply_for_another() -> None:
    memory = Memory()
    of_one, of_other = (memory.part(PartKey(name), now=0.0) for name in ("one", "other"))
    for part, shadow in ((of_one, A), (of_other, B)):
        part.asked = part.applying = frozenset({shadow})
        part.apply_task = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
    memory.end_applies(frozenset({A}))
    assert (of_one.apply_task, of_one.applying) == (None, frozenset())
    assert of_other.applying == {B}
    assert not memory.is_empty()
    memory.forget_parts([PartKey("one")])
    assert memory.parts().keys() == {"one"}
    assert memory.is_empty()
