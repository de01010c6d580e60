# SPDX-License-Identifier: Apache-2.0
"""Percentiles are values that were measured; ratios compare like with like."""

import pytest

from bench.figures import Figures, Ratio, figures_of, percentile, ratio_of

HUNDRED = [float(value) for value in range(1, 101)]


@pytest.mark.parametrize(
    ("series", "percent", "expected"),
    [
        pytest.param([7.0], 50, 7.0, id="one value is every percentile"),
        pytest.param([1.0, 2.0], 50, 1.0, id="half of two values do not exceed the lower"),
        pytest.param([1.0, 2.0, 3.0], 50, 2.0, id="the middle of an odd number"),
        pytest.param(HUNDRED, 95, 95.0, id="p95 of a hundred"),
        pytest.param(HUNDRED, 99, 99.0, id="p99 of a hundred is not yet the maximum"),
        pytest.param(HUNDRED[:60], 99, 60.0, id="p99 of sixty is the maximum"),
        pytest.param(HUNDRED[:20], 95, 19.0, id="no rounding error moves an exact rank"),
    ],
)
def test_percentile_is_the_nearest_rank(series: list[float], percent: int, expected: float) -> None:
    assert percentile(series, percent) == expected


def test_figures_do_not_depend_on_the_order() -> None:
    assert figures_of([3.0, 1.0, 2.0]) == Figures(n=3, p50=2.0, p95=3.0, p99=3.0, max=3.0)


def test_nothing_measured_has_no_figures() -> None:
    assert figures_of([]) is None


def test_a_ratio_compares_each_percentile_with_the_same_one() -> None:
    floor = Figures(n=9, p50=20.0, p95=40.0, p99=50.0, max=90.0)
    mount = Figures(n=9, p50=50.0, p95=60.0, p99=150.0, max=900.0)
    assert ratio_of(mount, floor) == Ratio(p50=2.5, p95=1.5, p99=3.0)
