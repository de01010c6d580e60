# SPDX-License-Identifier: Apache-2.0
"""A sighting keeps the time of its arrival, whenever someone asks for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from bench.clock import Nanoseconds
from bench.watches import CHECKPOINT, Sighting, Sightings, WatchEnded, pods_in_checkpoint
from devicemount_testbed.api import DeadlineExceeded

FIRST, SECOND = (
    Sighting(key="pod", at=Nanoseconds(at), seen=phase)
    for at, phase in ((10, "Pending"), (20, "Running"))
)


def endless(queue: "SimpleQueue[Sighting[str]]") -> Iterator[Sighting[str]]:
    while True:
        yield queue.get()


@pytest.fixture
def queue() -> "SimpleQueue[Sighting[str]]":
    return SimpleQueue()


def asked(sightings: Sightings[str], phase: str, deadline_s: float = 10.0) -> Sighting[str]:
    return sightings.first("pod", lambda p: p == phase, what=phase, deadline_s=deadline_s)


def test_the_first_sighting_that_fits_is_found_late_too(
    queue: "SimpleQueue[Sighting[str]]",
) -> None:
    sightings = Sightings(endless(queue), what="watch")
    queue.put(FIRST)
    queue.put(SECOND)
    assert asked(sightings, "Running") == SECOND
    assert asked(sightings, "Pending") == FIRST


def test_what_does_not_come_ends_at_the_deadline(queue: "SimpleQueue[Sighting[str]]") -> None:
    sightings = Sightings(endless(queue), what="watch")
    with pytest.raises(DeadlineExceeded, match=r"pod: not Running within 0\.01 s \(watch\)"):
        asked(sightings, "Running", deadline_s=0.01)


def test_a_source_that_ends_is_said_at_once_but_what_it_said_stays() -> None:
    sightings = Sightings(iter([FIRST]), what="watch")
    assert asked(sightings, "Pending") == FIRST
    with pytest.raises(WatchEnded, match="watch"):
        asked(sightings, "Running", deadline_s=60.0)


def test_a_pod_is_seen_when_the_checkpoint_first_names_it(tmp_path: Path) -> None:
    seen = Sightings(pods_in_checkpoint(tmp_path), what="checkpoint")
    for uids in (["a"], ["a", "b"]):
        entries = [{"PodUID": uid, "ResourceName": "example.com/x"} for uid in uids]
        (tmp_path / "new").write_text(json.dumps({"Data": {"PodDeviceEntries": entries}}))
        (tmp_path / "new").replace(tmp_path / CHECKPOINT)
    times = [
        seen.first(uid, lambda _: True, what="named", deadline_s=10.0).at for uid in ("a", "b")
    ]
    assert times == sorted(times)
