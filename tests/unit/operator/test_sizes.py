# SPDX-License-Identifier: Apache-2.0
"""What becomes of a shadow pod's cpu and memory under the LimitRanges of its namespace."""

from fractions import Fraction
from typing import Any

import pytest

from devicemount_operator import sizes
from devicemount_operator.sizes import DEFAULT, STORAGE, Sizes


def limit_range(**rules: Any) -> dict[str, Any]:
    """Return a LimitRange of one rule for containers, or of the `type` that is named."""
    return {"spec": {"limits": [{"type": "Container", **rules}]}}


def sized(cpu: tuple[str, str], memory: tuple[str, str], **more: tuple[str, str]) -> Sizes:
    pairs = {"cpu": cpu, "memory": memory, **more}
    return Sizes(
        requests={name: pair[0] for name, pair in pairs.items()},
        limits={name: pair[1] for name, pair in pairs.items()},
    )


CPU, MEMORY = ("1m", "200m"), ("32Mi", "32Mi")


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        pytest.param([], DEFAULT, id="no rule: next to nothing"),
        pytest.param(
            [limit_range(default={"memory": "1Gi"}, defaultRequest={"cpu": "1"})],
            DEFAULT,
            id="defaults are for pods that say nothing",
        ),
        pytest.param(
            [limit_range(min={"cpu": "50m", "memory": "64Mi"})],
            sized(("50m", "200m"), ("64Mi", "64Mi")),
            id="a minimum of containers",
        ),
        pytest.param(
            [limit_range(min={"cpu": "300m"})],
            sized(("300m", "300m"), MEMORY),
            id="a minimum above the limit raises both",
        ),
        pytest.param(
            [limit_range(type="Pod", min={"memory": "128Mi"})],
            sized(CPU, ("128Mi", "128Mi")),
            id="a minimum of pods",
        ),
        pytest.param(
            [limit_range(max={"cpu": "0.15", "memory": "16Mi"})],
            sized(("1m", "150m"), ("16Mi", "16Mi")),
            id="a maximum below what is usual",
        ),
        pytest.param(
            [limit_range(maxLimitRequestRatio={"cpu": "1"})],
            sized(("200m", "200m"), MEMORY),
            id="ratio 1: requests as limits",
        ),
        pytest.param(
            [limit_range(maxLimitRequestRatio={"cpu": "3"})],
            sized(("67m", "200m"), MEMORY),
            id="another ratio: not more than it asks for",
        ),
        pytest.param(
            [
                limit_range(
                    min={"cpu": "50m", "memory": "64Mi"},
                    maxLimitRequestRatio={"cpu": "1", "memory": "1"},
                    default={"memory": "1Gi"},
                ),
                limit_range(type="Pod", min={"memory": "128Mi"}),
            ],
            sized(("200m", "200m"), ("128Mi", "128Mi")),
            id="all of it at once, from two objects",
        ),
        pytest.param(
            [limit_range(type="Pod", max={STORAGE: "1Gi"})],
            sized(CPU, MEMORY, **{STORAGE: ("16Mi", "16Mi")}),
            id="what must be said is said",
        ),
        pytest.param(
            [limit_range(min={STORAGE: "100M"})],
            sized(CPU, MEMORY, **{STORAGE: ("100000000", "100000000")}),
            id="bytes that are no whole mebibytes",
        ),
        pytest.param(
            [limit_range(max={"vendor.io/gpu": "1"}), limit_range(type="PersistentVolumeClaim")],
            DEFAULT,
            id="devices and volumes are not ours to size",
        ),
    ],
)
def test_sizes_keep_to_every_rule(ranges: list[dict[str, Any]], expected: Sizes) -> None:
    assert sizes.fitting(ranges) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", Fraction(0)),
        ("2", Fraction(2)),
        (2, Fraction(2)),
        ("100m", Fraction(1, 10)),
        ("1.5Gi", Fraction(3 * 2**29)),
        ("1k", Fraction(1000)),
        ("1e3", Fraction(1000)),
        ("1E3", Fraction(1000)),
        ("1E", Fraction(10**18)),
        ("1Ei", Fraction(2**60)),
        ("5n", Fraction(5, 10**9)),
    ],
)
def test_quantities_are_read_as_kubernetes_writes_them(text: object, value: Fraction) -> None:
    assert sizes.quantity(text) == value


@pytest.mark.parametrize("text", ["", "m", "1x", "1 Gi", "-1", "1e3Mi x"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        sizes.quantity(text)
