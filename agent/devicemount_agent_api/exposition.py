# SPDX-License-Identifier: Apache-2.0
"""Figures in Prometheus' text format: few enough to need no library.

Each program names its own in one module, so that they are documented from one place
(docs/metrics.md). Labels hold words of closed sets only, never names of objects. Figures belong to
the event loop's thread.
"""

from bisect import bisect_left
from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[str, str, float]  # suffix of the name, labels, value

_families: dict[str, "_Family"] = {}


class _Family(Protocol):
    kind: str
    name: str
    text: str

    def samples(self) -> Iterable[Sample]: ...


class Counter:
    """Counts since the program's start."""

    kind = "counter"

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self._counts: Count[str] = Count()
        _families[name] = self

    def add(self, count: int = 1, **labels: str) -> None:
        self._counts[_written(labels)] += count

    def samples(self) -> Iterable[Sample]:
        return [("", labels, count) for labels, count in (self._counts or {"": 0}).items()]


class Histogram:
    """How long something takes, in seconds; `bounds` rise."""

    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self.name, self.text = name, text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        _families[name] = self

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> Iterable[Sample]:
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            limit = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield "_bucket", f'le="{limit}"', total
        yield "_sum", "", self._sum
        yield "_count", "", total


class _Gauge:
    kind = "gauge"

    def __init__(self, name: str, text: str, values: Callable[[], Mapping[str, float]]) -> None:
        self.name, self.text, self._values = name, text, values

    def samples(self) -> Iterable[Sample]:
        return [("", labels, value) for labels, value in self._values().items()]


def gauge(name: str, text: str, value: Callable[[], float]) -> None:
    """Have a value asked for whenever figures are read; a later one of that name replaces it."""
    _families[name] = _Gauge(name, text, lambda: {"": value()})


def gauges(name: str, text: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
    """The same for several, by the value of one label."""

    def labelled() -> Mapping[str, float]:
        return {_written({label: word}): value for word, value in values().items()}

    _families[name] = _Gauge(name, text, labelled)


def exposition() -> str:
    """Write all figures."""
    return "".join(f"{line}\n" for family in _families.values() for line in _lines(family))


def _written(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{labels[name]}"' for name in sorted(labels))


def _lines(family: _Family) -> Iterator[str]:
    yield f"# HELP {family.name} {family.text}"
    yield f"# TYPE {family.name} {family.kind}"
    for suffix, labels, value in family.samples():
        braced = f"{{{labels}}}" if labels else ""
        yield f"{family.name}{suffix}{braced} {value:.15g}"
