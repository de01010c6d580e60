# SPDX-License-Identifier: Apache-2.0
"""How much cpu and memory a shadow pod asks for, and what becomes of it under a namespace's
LimitRanges.

Pure. Next to nothing by default; raised to a minimum, lowered to a maximum, and its requests raised
towards its limits where a ratio asks for that, but never more than any of them demands: it counts
against the tenant's quota. What a LimitRange says of devices is not ours to get round.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, Final

Json = Mapping[str, Any]

STORAGE: Final = "ephemeral-storage"

_MEBIBYTE: Final = 2**20
_QUANTITY: Final = re.compile(r"(?P<number>[0-9.]+(?:[eE][+-]?[0-9]+)?)(?P<suffix>[a-zA-Z]*)")
_SUFFIXES: Final[Mapping[str, Fraction]] = {
    **{prefix: Fraction(1000) ** n for n, prefix in enumerate(("", "k", "M", "G", "T", "P", "E"))},
    **{f"{p}i": Fraction(1024) ** n for n, p in enumerate(("K", "M", "G", "T", "P", "E"), start=1)},
    **{prefix: Fraction(1, 1000**n) for n, prefix in enumerate(("m", "u", "n"), start=1)},
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What `hold` has besides its devices, as Kubernetes writes it."""

    requests: Mapping[str, str]
    limits: Mapping[str, str]


# Burstable: next to nothing is reserved on a full node, yet the runtime can start the container in
# time. A limit below 100m throttles that start to a second and more; the memory is the runtime's
# init at that moment.
DEFAULT: Final = Sizes(
    requests={"cpu": "1m", "memory": "32Mi"}, limits={"cpu": "200m", "memory": "32Mi"}
)

_UNITS: Final[Mapping[str, Fraction]] = {  # what is asked for is a whole number of these
    "cpu": Fraction(1, 1000),
    "memory": Fraction(1),
    STORAGE: Fraction(1),
}
_STORAGE_BYTES: Final = Fraction(16 * _MEBIBYTE)  # `hold` writes nothing; only where one is asked


@dataclass(frozen=True, slots=True)
class _Bounds:
    least: Fraction = Fraction(0)
    most: Fraction | None = None
    ratio: Fraction | None = None  # of limit to request

    def and_(self, other: "_Bounds") -> "_Bounds":
        """Return what keeps to both."""
        return _Bounds(
            least=max(self.least, other.least),
            most=_lower(self.most, other.most),
            ratio=_lower(self.ratio, other.ratio),
        )


def fitting(limit_ranges: Iterable[Json]) -> Sizes:
    """Return the smallest sizes that the LimitRanges of a namespace let pass, if any do."""
    bounds = _bounds(limit_ranges)
    requests, limits = {}, {}
    for resource in _UNITS:
        if resource not in DEFAULT.requests.keys() | bounds.keys():
            continue
        request, limit = _fit(resource, bounds.get(resource, _Bounds()))
        requests[resource] = _written(resource, request)
        limits[resource] = _written(resource, limit)
    return Sizes(requests=requests, limits=limits)


def quantity(text: object) -> Fraction:
    """Parse a quantity as Kubernetes writes it: 200m, 1.5Gi, 1e3. Raises ValueError."""
    found = _QUANTITY.fullmatch(str(text))
    if found is None or found["suffix"] not in _SUFFIXES:
        raise ValueError(f"not a quantity: {text!r}")
    return Fraction(found["number"]) * _SUFFIXES[found["suffix"]]


def _bounds(limit_ranges: Iterable[Json]) -> dict[str, _Bounds]:
    found: dict[str, _Bounds] = {}
    for limit_range in limit_ranges:
        for rule in (limit_range.get("spec") or {}).get("limits") or ():
            if rule.get("type") not in ("Container", "Pod"):
                continue
            for resource in _UNITS:
                said = _rule(rule, resource)
                if said != _Bounds():
                    found[resource] = found.get(resource, _Bounds()).and_(said)
    return found


def _rule(rule: Json, resource: str) -> _Bounds:
    least = _said(rule, "min", resource)
    return _Bounds(
        least=Fraction(0) if least is None else least,
        most=_said(rule, "max", resource),
        ratio=_said(rule, "maxLimitRequestRatio", resource),
    )


def _said(rule: Json, field: str, resource: str) -> Fraction | None:
    text = (rule.get(field) or {}).get(resource)
    return None if text is None else quantity(text)


def _fit(resource: str, bounds: _Bounds) -> tuple[Fraction, Fraction]:
    """Return request and limit."""
    request, limit = _default(resource)
    request = max(request, bounds.least)
    limit = max(limit, request)
    if bounds.most is not None:
        limit = min(limit, bounds.most)
    if bounds.ratio:
        request = max(request, limit / bounds.ratio)
    return min(request, limit), limit


def _default(resource: str) -> tuple[Fraction, Fraction]:
    if resource == STORAGE:
        return _STORAGE_BYTES, _STORAGE_BYTES
    return quantity(DEFAULT.requests[resource]), quantity(DEFAULT.limits[resource])


def _lower(one: Fraction | None, other: Fraction | None) -> Fraction | None:
    return min((value for value in (one, other) if value is not None), default=None)


def _written(resource: str, value: Fraction) -> str:
    units = ceil(value / _UNITS[resource])
    if resource == "cpu":
        return f"{units}m"
    whole, rest = divmod(units, _MEBIBYTE)
    return str(units) if rest else f"{whole}Mi"
