# SPDX-License-Identifier: Apache-2.0
"""The plugin's figures in Prometheus' text format: few enough to need no library."""

from collections import Counter
from collections.abc import Iterable, Iterator

from devicemount_agent_api.version import VERSION
from devicemount_plugin.health import Health
from devicemount_plugin.registration import Registration


def exposition(registrations: Iterable[Registration]) -> str:
    """Write all figures; resource names need no escaping, since the configuration checks them."""
    registrations = tuple(registrations)
    families = (
        _family("info", "gauge", "The plugin's version.", [(f'version="{VERSION}"', 1)]),
        _family("devices", "gauge", "Devices that the kubelet knows.", _devices(registrations)),
        _family(
            "lacking",
            "gauge",
            "Devices without driver, node or control node, or one that is expected.",
            ((_resource(one), one.inventory.lacking) for one in registrations),
        ),
        _family(
            "registered",
            "gauge",
            "Whether the kubelet has accepted the resource and not forgotten it.",
            ((_resource(one), int(one.is_current())) for one in registrations),
        ),
        _family(
            "registrations_total",
            "counter",
            "How often the kubelet has accepted the resource.",
            ((_resource(one), one.count) for one in registrations),
        ),
    )
    return "".join(f"{line}\n" for family in families for line in family)


def _family(
    name: str, kind: str, help_text: str, samples: Iterable[tuple[str, int]]
) -> Iterator[str]:
    full = f"devicemount_plugin_{name}"
    yield f"# HELP {full} {help_text}"
    yield f"# TYPE {full} {kind}"
    for labels, value in samples:
        yield f"{full}{{{labels}}} {value}"


def _devices(registrations: Iterable[Registration]) -> Iterator[tuple[str, int]]:
    for registration in registrations:
        counted = Counter(registration.inventory.listing.values())
        for health in Health:
            yield f'{_resource(registration)},health="{health.value}"', counted[health]


def _resource(registration: Registration) -> str:
    return f'resource="{registration.resource_name}"'
