# SPDX-License-Identifier: Apache-2.0
"""The agent's figures in Prometheus' text format: few enough to need no library.

All names stand here, so that they are documented from one place (docs/metrics.md). Labels hold
words of closed sets only, never names of objects.
"""

from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator

_families: dict[str, "Counter | _Gauge"] = {}


class Counter:
    """Counts since the agent's start. Belongs to the event loop."""

    kind = "counter"

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self._counts: Count[str] = Count()
        _families[name] = self

    def add(self, count: int = 1, **labels: str) -> None:
        self._counts[",".join(f'{name}="{labels[name]}"' for name in sorted(labels))] += count

    def samples(self) -> Iterable[tuple[str, float]]:
        return self._counts.items() or [("", 0)]


class _Gauge:
    kind = "gauge"

    def __init__(self, name: str, text: str, value: Callable[[], float]) -> None:
        self.name, self.text, self._value = name, text, value

    def samples(self) -> Iterable[tuple[str, float]]:
        return [("", self._value())]


def gauge(name: str, text: str, value: Callable[[], float]) -> None:
    """Have a value asked for whenever figures are read; a later one of that name replaces it."""
    _families[name] = _Gauge(name, text, value)


drift_repairs = Counter(
    "devicemount_drift_repairs_total",
    "How often a container was given access again that somebody else had taken.",
)

restarts = Counter(
    "devicemount_restarts_total",
    "How often a grant was given again to the next run of its container.",
)
losses = Counter(
    "devicemount_losses_total",
    "How often a reservation was lost, by reason.",
)


def exposition() -> str:
    """Write all figures."""
    return "".join(f"{line}\n" for family in _families.values() for line in _lines(family))


def _lines(family: "Counter | _Gauge") -> Iterator[str]:
    yield f"# HELP {family.name} {family.text}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, value in family.samples():
        braced = f"{{{labels}}}" if labels else ""
        yield f"{family.name}{braced} {value:.15g}"
