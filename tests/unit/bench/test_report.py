# SPDX-License-Identifier: Apache-2.0
"""The JSON has the promised keys, both nodes together and each; no failure is left out."""

import json

from bench.report import results
from bench.samples import Arm, Failure, Moment, Run, Sample
from bench.table import tables

NODES = ("node1", "node2")


def floor(node: str, t1_ms: float) -> Sample:
    return Sample(arm=Arm.FLOOR, node=node, ms={Moment.T1: t1_ms}, reported_ms={})


def mounted(node: str, t1_ms: float) -> Sample:
    ms = {
        Moment.POSTED: 8.0,
        Moment.SHADOW_POD: 20.0,
        Moment.CHOSEN: 40.0,
        Moment.T1: t1_ms,
        Moment.T2: t1_ms + 50.0,
        Moment.REFUSED: 15.0,
        Moment.GONE: 60.0,
        Moment.FREE: 65.0,
    }
    return Sample(arm=Arm.ADMISSION, node=node, ms=ms, reported_ms={"operator grantedMs": 33.0})


def run(*samples: Sample, failures: tuple[Failure, ...] = ()) -> Run:
    return Run(rounds=1, samples=samples, failures=failures, loads=(1.0, 3.0, 2.0))


WHOLE = run(
    floor("node1", 20.0), floor("node2", 30.0), mounted("node1", 50.0), mounted("node2", 60.0)
)


def test_both_nodes_together_and_each_node_have_figures() -> None:
    arms = results(WHOLE)["arms"]
    figures = {"n": 2, "p50": 50.0, "p95": 60.0, "p99": 60.0, "max": 60.0}
    assert arms["admission"]["t1_ms"] == figures
    assert arms["admission"]["nodes"]["node2"]["t2_ms"]["p50"] == 110.0
    assert arms["floor"]["nodes"]["node1"]["t1_ms"]["max"] == 20.0


def test_the_floor_has_no_t2() -> None:
    assert "t2_ms" not in results(WHOLE)["arms"]["floor"]


def test_a_ratio_is_to_the_floor_of_the_same_nodes() -> None:
    admission = results(WHOLE)["arms"]["admission"]
    assert admission["ratio_to_floor"]["p50"] == 50.0 / 20.0
    assert admission["nodes"]["node2"]["ratio_to_floor"]["p50"] == 60.0 / 30.0


def test_results_are_json_with_load_and_samples() -> None:
    found = json.loads(json.dumps(results(WHOLE)))
    assert found["samples"] == 1
    assert found["load_average"] == {"min": 1.0, "p50": 2.0, "max": 3.0}


def test_a_failed_sample_is_counted_and_named() -> None:
    failure = Failure(arm=Arm.ADMISSION, node="node2", what="not Ready within 60 s")
    partly = run(floor("node1", 20.0), mounted("node1", 50.0), failures=(failure,))
    admission = results(partly)["arms"]["admission"]
    assert admission["failed"] == 1
    assert admission["failures"] == ["node2: not Ready within 60 s"]
    assert admission["t1_ms"]["n"] == 1
    assert "failed: admission on node2: not Ready within 60 s" in tables(partly)


def test_an_arm_that_never_succeeded_is_a_row_without_samples() -> None:
    failures = tuple(Failure(arm=Arm.ADMISSION, node=node, what="no") for node in NODES)
    table = tables(run(floor("node1", 20.0), floor("node2", 30.0), failures=failures))
    assert table.count("no sample") == 5 * (1 + len(NODES))
    assert "2 failed samples" in table


def test_the_table_shows_the_ratio_and_what_each_hop_adds() -> None:
    lines = tables(WHOLE).splitlines()
    t1 = next(line for line in lines if line.startswith("admission T1") and "node1" in line)
    assert t1.split()[-3:] == ["2.50", "2.50", "2.50"]
    opened = next(line for line in lines if line.startswith("first open in the target"))
    assert opened.split()[-4:] == ["50.0", "(+10.0)", "60.0", "(+20.0)"]
    granted = next(line for line in lines if line.startswith("operator grantedMs"))
    assert granted.split()[-2:] == ["33.0", "33.0"]
