# SPDX-License-Identifier: Apache-2.0
"""The results of a run as JSON for programs. Pure."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from bench.figures import Figures, Ratio, figures_of, ratio_of
from bench.samples import Arm, Moment, Run, Sample

Json = dict[str, Any]  # the JSON boundary


def results(run: Run) -> Json:
    """Return the figures of every arm, of all nodes together and of each."""
    return {
        "samples": run.rounds,
        "load_average": {
            name: round(of(run.loads), 2)
            for name, of in (("min", min), ("p50", median), ("max", max))
        },
        "arms": {arm.value: _arm(run, arm) for arm in Arm},
    }


def _arm(run: Run, arm: Arm) -> Json:
    failures = [failure for failure in run.failures if failure.arm is arm]
    return {
        **_figures(run.samples, arm),
        "failed": len(failures),
        "failures": [f"{failure.node}: {failure.what}" for failure in failures],
        "nodes": {node: _figures(on_node(run.samples, node), arm) for node in run.nodes},
    }


def _figures(samples: Sequence[Sample], arm: Arm) -> Json:
    """Return the figures of each moment, and of T1 the ratio to the floor of the same samples."""
    found: Json = {}
    for moment in Moment:
        if figures := figures_at(samples, arm, moment):
            found[f"{moment.value}_ms"] = _json(figures)
    t1, base = (figures_at(samples, a, Moment.T1) for a in (arm, Arm.FLOOR))
    if t1 and base:
        found["ratio_to_floor"] = _json(ratio_of(t1, base))
    if reported := figures_reported(samples, arm):
        found["reported"] = {name: _json(figures) for name, figures in reported.items()}
    return found


def _json(figures: Figures | Ratio) -> Json:
    """Return the figures with three decimals: microseconds, below which nothing was measured."""
    return {name: round(value, 3) for name, value in asdict(figures).items()}


def on_node(samples: Sequence[Sample], node: str) -> list[Sample]:
    return [sample for sample in samples if sample.node == node]


def figures_at(samples: Sequence[Sample], arm: Arm, moment: Moment) -> Figures | None:
    """Return the figures of a moment; None where no sample of the arm has it."""
    return figures_of([s.ms[moment] for s in samples if s.arm is arm and moment in s.ms])


def figures_reported(samples: Sequence[Sample], arm: Arm) -> dict[str, Figures]:
    """Return the figures of the durations that devicemount itself reports."""
    of_arm = [sample.reported_ms for sample in samples if sample.arm is arm]
    names = sorted({name for reported in of_arm for name in reported})
    series = {name: [r[name] for r in of_arm if name in r] for name in names}
    return {name: figures for name in names if (figures := figures_of(series[name]))}
