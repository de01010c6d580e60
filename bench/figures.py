# SPDX-License-Identifier: Apache-2.0
"""Percentiles and ratios. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figures:
    """What is said of a series of milliseconds."""

    n: int
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """One series' percentiles over another's."""

    p50: float
    p95: float
    p99: float


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that `percent` of the values do not exceed (nearest rank).

    It is always a value that was measured, so p99 of fewer than 100 values is their maximum.
    """
    return ordered[math.ceil(percent * len(ordered) / 100) - 1]


def figures_of(series: Sequence[float]) -> Figures | None:
    """Return the figures of a series in any order; None if it is empty."""
    if not series:
        return None
    ordered = sorted(series)
    p50, p95, p99 = (percentile(ordered, percent) for percent in (50, 95, 99))
    return Figures(n=len(ordered), p50=p50, p95=p95, p99=p99, max=ordered[-1])


def ratio_of(series: Figures, floor: Figures) -> Ratio:
    return Ratio(p50=series.p50 / floor.p50, p95=series.p95 / floor.p95, p99=series.p99 / floor.p99)
