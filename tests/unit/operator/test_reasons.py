# SPDX-License-Identifier: Apache-2.0
"""The table of reasons is complete, speaks in sentences, and its page is what it says."""

from pathlib import Path

import pytest

from devicemount_operator import reasons
from devicemount_operator.reasons import (
    PATIENT,
    QUICK,
    RESERVATION,
    SLOW,
    TABLE,
    Kind,
    Pace,
    Reason,
)

ROOT = Path(__file__).parents[3]

# As it was decided, before the table: which of these ends by itself and which does not.
DESIGNED = {
    Kind.WAITING: (
        "TargetNotFound TargetNotRunning Insufficient Unschedulable QuotaExceeded ResourceUnknown "
        "AgentUnavailable NodeNotEnabled DriverMissing ShadowNotRunning AllocationUnknown "
        "DeviceBusy ReservationLost NodeDraining"
    ),
    Kind.PERMANENT: (
        "ContainerNotFound ContainerAmbiguous NotAllowed PathConflict UnsupportedRuntime "
        "ShrinkNotPossible AllocatedByDRA"
    ),
    Kind.SUSPENDED: "Suspended Expired",
}


def test_every_reason_stands_in_the_table_in_order() -> None:
    assert tuple(TABLE) == tuple(Reason)


@pytest.mark.parametrize("kind", DESIGNED)
def test_what_ends_by_itself_is_as_it_was_decided(kind: Kind) -> None:
    for word in DESIGNED[kind].split():
        assert TABLE[Reason(word)].kind is kind, word


def test_the_page_is_what_the_table_says() -> None:
    assert (ROOT / "docs" / "reasons.md").read_text() == reasons.to_markdown()


@pytest.mark.parametrize("reason", Reason)
def test_what_is_not_ready_says_what_to_do(reason: Reason) -> None:
    entry = TABLE[reason]
    assert entry.meaning.endswith(".")
    assert entry.kind is Kind.READY or entry.advice.endswith(".")


def test_a_message_is_what_is_so_and_then_what_to_do() -> None:
    assert reasons.message(Reason.TARGET_NOT_RUNNING, "pod a is Pending") == (
        "pod a is Pending. It mounts as soon as the container runs."
    )
    assert reasons.message(Reason.MOUNTED, "vcs1 opens.") == "vcs1 opens."


@pytest.mark.parametrize(
    ("pace", "pauses"),
    [
        pytest.param(QUICK, [0.5, 1.0, 2.0, 4.0, 5.0, 5.0], id="a call to an agent"),
        pytest.param(PATIENT, [1.0, 2.0, 4.0, 8.0, 15.0, 15.0], id="what others are to bring"),
        pytest.param(RESERVATION, [2.0, 4.0, 8.0, 16.0, 32.0, 50.0], id="what costs a pod"),
        pytest.param(SLOW, [10.0, 20.0, 40.0, 80.0, 160.0, 300.0], id="what hardly changes"),
    ],
)
def test_pauses_double_up_to_a_bound(pace: Pace, pauses: list[float]) -> None:
    assert [pace.pause_s(failures) for failures in range(1, 7)] == pauses
    assert pace.pause_s(10**6) == pace.last_s


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        pytest.param("PathConflict", Reason.PATH_CONFLICT, id="permanent"),
        pytest.param("Insufficient", Reason.INSUFFICIENT, id="waiting"),
        pytest.param("Mounted", None, id="nobody is refused for being ready"),
        pytest.param("LibrariesMissing", None, id="nor for being ready and degraded"),
        pytest.param("Suspended", None, id="nor for being suspended"),
        pytest.param("Whatever", None, id="a word that a newer agent has"),
    ],
)
def test_only_trouble_is_a_refusal(word: str, reason: Reason | None) -> None:
    assert reasons.trouble(word) is reason


def test_at_most_ten_pods_are_made_in_five_minutes() -> None:
    at, made = 0.0, 0
    while at < 300:
        made += 1
        at += RESERVATION.pause_s(made)
    assert made <= 10
