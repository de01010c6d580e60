# SPDX-License-Identifier: Apache-2.0
"""What happened to a grant and leaves nothing to be done: access repaired, a restarted container.

Agents count both. Told are Events, no status: a repair once a burst, so that who takes access away
four times a second does not fill the namespace with Events. What was so before the operator knew
the grant is no news.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from devicemount_operator.decide.decision import Event, EventType
from devicemount_operator.decide.observation import (
    Grant,
    Observation,
    PodUID,
    is_granted,
    known_container,
)
from devicemount_operator.decide.text import MAX_EVENT_MESSAGE, clip, listing
from devicemount_operator.reasons import Reason

QUIET_S: Final = 60.0  # without a repair: what comes then is another burst
REPAIRED: Final = "AccessRepaired"
MOUNTED_AGAIN: Final = "MountedAgain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is no news any more about one shadow pod."""

    since_wall: float  # unix seconds: repairs are counted from then on
    repairs_before: int  # that
    repairs: int
    restarts: int
    repaired_at: float | None = None  # monotonic: when the last repair was heard of


ToldOf = Mapping[PodUID, Told]


def tell(observation: Observation, told: ToldOf) -> tuple[ToldOf, tuple[Event, ...]]:
    """Return what is known as told from now on, and the Events that tell it."""
    now: dict[PodUID, Told] = {}
    events: list[Event] = []
    for grant in observation.agent.grants:
        before = told.get(grant.shadow_uid) or _first(observation, grant)
        if is_granted(grant):
            events += _events(observation, grant, before)
            before = _after(observation, grant, before)
        now[grant.shadow_uid] = before
    return now, tuple(events)


def without_repetition(events: tuple[Event, ...], news: tuple[Event, ...]) -> tuple[Event, ...]:
    """Return all of them, but not that it is mounted where it is told that it is so again."""
    is_again = any(event.reason == MOUNTED_AGAIN for event in news)
    kept = [e for e in events if not (is_again and e.reason == Reason.MOUNTED.value)]
    return (*kept, *news)


def _first(observation: Observation, grant: Grant) -> Told:
    return Told(
        since_wall=observation.wall,
        repairs_before=grant.repairs,
        repairs=grant.repairs,
        restarts=grant.restarts,
    )


def _after(observation: Observation, grant: Grant, before: Told) -> Told:
    if grant.repairs < before.repairs:  # its agent was restarted and counts anew
        return replace(_first(observation, grant), repaired_at=before.repaired_at)
    repaired_at = observation.now if grant.repairs > before.repairs else before.repaired_at
    return replace(before, repairs=grant.repairs, restarts=grant.restarts, repaired_at=repaired_at)


def _events(observation: Observation, grant: Grant, before: Told) -> list[Event]:
    container = known_container(observation, grant.place.target_uid)
    ids = listing([f"{device.resource} {device.id}" for device in grant.devices])
    events = []
    if grant.restarts > before.restarts:
        text = f"container {container} was restarted and has {ids} again"
        events.append(_event(EventType.NORMAL, MOUNTED_AGAIN, f"{text} ({grant.container_id})"))
    if grant.repairs > before.repairs and not _is_in_burst(observation, before):
        count = grant.repairs - before.repairs_before
        times = "once" if count == 1 else f"{count} times"
        since = datetime.fromtimestamp(int(before.since_wall), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        text = f"access to {ids} was taken from container {container} by somebody on the node"
        text += f" and was given again: {times} since {since}"
        events.append(_event(EventType.WARNING, REPAIRED, text))
    return events


def _event(kind: EventType, reason: str, text: str) -> Event:
    return Event(kind, reason, clip(text, MAX_EVENT_MESSAGE))


def _is_in_burst(observation: Observation, before: Told) -> bool:
    return before.repaired_at is not None and observation.now - before.repaired_at < QUIET_S
