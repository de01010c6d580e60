# SPDX-License-Identifier: Apache-2.0
"""Repairs and restarts are told once a burst and once each, and never what was so before."""

from dataclasses import replace
from typing import Any

from devicemount_operator.decide import happened
from devicemount_operator.decide.decision import Event, EventType
from devicemount_operator.decide.happened import QUIET_S, ToldOf, tell
from devicemount_operator.decide.observation import GrantPhase, Observation
from unit.operator import given
from unit.operator.given import NOW

ID = "testbed.devicemount.io/vcs vcs1"


def at(time_s: float, **grant: Any) -> Observation:
    phase = grant.pop("phase", GrantPhase.GRANTED)
    agent = given.agent(grants=(given.grant(phase, **grant),), container="notebook")
    return given.mounted(agent=agent, now=NOW + time_s, wall=given.WALL + time_s)


def told(*passes: Observation) -> list[list[Event]]:
    known: ToldOf = {}
    events = []
    for observation in passes:
        known, news = tell(observation, known)
        events.append(list(news))
    return events


def test_a_burst_of_repairs_is_one_event_which_says_how_many_and_since_when() -> None:
    first, *later = told(
        at(0),
        at(10, repairs=1),
        at(10.25, repairs=2),
        at(40, repairs=100),
        at(40 + QUIET_S, repairs=101),
    )
    assert first == []
    taken = f"access to {ID} was taken from container notebook by somebody on the node and was"
    since = "since 2023-11-14T22:13:20Z"
    assert later == [
        [Event(EventType.WARNING, "AccessRepaired", f"{taken} given again: once {since}")],
        [],
        [],
        [Event(EventType.WARNING, "AccessRepaired", f"{taken} given again: 101 times {since}")],
    ]


def test_what_an_operator_finds_when_it_starts_is_no_news() -> None:
    assert told(at(0, repairs=7, restarts=3), at(1, repairs=7, restarts=3)) == [[], []]


def test_a_restarted_agent_counts_anew_and_says_no_nonsense() -> None:
    *_, anew, next_burst = told(at(0), at(1, repairs=5), at(100, repairs=0), at(200, repairs=1))
    assert anew == []
    assert next_burst[0].message.endswith("given again: once since 2023-11-14T22:15:00Z")


def test_each_restart_is_told_when_the_devices_open_again() -> None:
    restarts = told(
        at(0),
        at(1, phase=GrantPhase.TARGET_ENDED),
        at(2, restarts=1, phase=GrantPhase.WAITING),
        at(3, restarts=1, container_id="beef"),
        at(4, restarts=1, container_id="beef"),
    )
    text = f"container notebook was restarted and has {ID} again (beef)"
    again = [Event(EventType.NORMAL, "MountedAgain", text)]
    assert restarts == [[], [], [], again, []]


def test_that_it_is_mounted_is_not_told_beside_that_it_is_so_again() -> None:
    mounted = Event(EventType.NORMAL, "Mounted", "it opens")
    again = replace(mounted, reason="MountedAgain")
    repaired = replace(mounted, reason="AccessRepaired")
    assert happened.without_repetition((mounted,), (again,)) == (again,)
    assert happened.without_repetition((mounted,), (repaired,)) == (mounted, repaired)


def test_what_is_gone_is_forgotten() -> None:
    known, _ = tell(at(0, repairs=5), {})
    known, _ = tell(given.observation(), known)
    assert known == {}
