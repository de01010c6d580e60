# SPDX-License-Identifier: Apache-2.0
"""Figures as Prometheus reads them."""

from collections.abc import Iterator

import pytest

from devicemount_agent_api import exposition as metrics


@pytest.fixture(autouse=True)
def _no_others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(metrics, "_families", {})
    yield


def test_a_counter_stands_at_nothing_before_it_counts() -> None:
    metrics.Counter("devicemount_bites_total", "How often it bit.")
    assert metrics.exposition() == (
        "# HELP devicemount_bites_total How often it bit.\n"
        "# TYPE devicemount_bites_total counter\n"
        "devicemount_bites_total 0\n"
    )


def test_a_counter_with_labels_counts_each_combination() -> None:
    bites = metrics.Counter("devicemount_bites_total", "How often it bit.")
    bites.add(reason="hunger", who="dog")
    bites.add(2, who="cat", reason="play")
    bites.add(who="dog", reason="hunger")
    assert metrics.exposition().splitlines()[2:] == [
        'devicemount_bites_total{reason="hunger",who="dog"} 2',
        'devicemount_bites_total{reason="play",who="cat"} 2',
    ]


def test_a_large_count_is_written_out() -> None:
    metrics.Counter("devicemount_bites_total", "How often it bit.").add(12_345_678)
    assert metrics.exposition().splitlines()[2] == "devicemount_bites_total 12345678"


def test_a_gauge_is_asked_each_time_and_a_later_one_takes_its_place() -> None:
    value = [1.5]
    metrics.gauge("devicemount_depth", "How deep.", lambda: 7)
    metrics.gauge("devicemount_depth", "How deep.", lambda: value[0])
    assert metrics.exposition().splitlines()[1:] == [
        "# TYPE devicemount_depth gauge",
        "devicemount_depth 1.5",
    ]
    value[0] = True
    assert metrics.exposition().endswith("\ndevicemount_depth 1\n")


def test_a_gauge_of_several_has_a_line_for_each_word() -> None:
    metrics.gauges("devicemount_mounts", "How many.", "reason", lambda: {"Mounted": 3, "": 1})
    assert metrics.exposition().splitlines()[2:] == [
        'devicemount_mounts{reason="Mounted"} 3',
        'devicemount_mounts{reason=""} 1',
    ]


def test_a_histogram_counts_up_to_each_bound() -> None:
    took = metrics.Histogram("devicemount_took_seconds", "How long.", (0.001, 0.5))
    for seconds in (0.001, 0.25, 4):
        took.observe(seconds)
    assert metrics.exposition().splitlines()[1:] == [
        "# TYPE devicemount_took_seconds histogram",
        'devicemount_took_seconds_bucket{le="0.001"} 1',
        'devicemount_took_seconds_bucket{le="0.5"} 2',
        'devicemount_took_seconds_bucket{le="+Inf"} 3',
        "devicemount_took_seconds_sum 4.251",
        "devicemount_took_seconds_count 3",
    ]
