# SPDX-License-Identifier: Apache-2.0
"""What an edit has brought or taken, told once, where nothing else is new: mounted before and now.

Pure: both are read off the status that was written and the one that is about to be.
"""

from typing import Final

from devicemount_operator.api import v1alpha1 as api
from devicemount_operator.decide.decision import Event, EventType
from devicemount_operator.decide.text import MAX_EVENT_MESSAGE, clip, listing
from devicemount_operator.reasons import Reason

ADDED: Final = "DevicesAdded"
REMOVED: Final = "DevicesRemoved"


def tell(before: api.Status, after: api.Status) -> tuple[Event, ...]:
    """Return the Events of devices that came to, or went from, a pod that had some and has some."""
    former = {row.pod_uid: row for row in before.targets if row.reason == Reason.MOUNTED.value}
    pairs = [
        (former[row.pod_uid], row)
        for row in after.targets
        if row.reason == Reason.MOUNTED.value and row.pod_uid in former
    ]
    return tuple(event for one, other in pairs for event in _events(one, other))


def _events(before: api.TargetStatus, after: api.TargetStatus) -> list[Event]:
    had, has = _names(before), _names(after)
    events = []
    if added := [name for name in has if name not in had]:
        events.append(_event(ADDED, f"pod {after.pod_name} has {listing(added)} as well"))
    if removed := [name for name in had if name not in has]:
        events.append(_event(REMOVED, f"took {listing(removed)} from pod {after.pod_name}"))
    return events


def _names(row: api.TargetStatus) -> list[str]:
    return [f"{device.resource} {device.id}" for device in row.devices]


def _event(reason: str, text: str) -> Event:
    return Event(EventType.NORMAL, reason, clip(text, MAX_EVENT_MESSAGE))
