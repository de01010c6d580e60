# SPDX-License-Identifier: Apache-2.0
"""What the kubelet's list of healthy devices says of a device, and when."""

import pytest

from devicemount_agent.allocation.kubelet import parse_registered
from devicemount_agent.device_health import NONE_HEALTHY_FOR_S, DeviceHealth
from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.model import Device, DeviceID, Health, ResourceName

CARD = Device(ResourceName("example.com/card"), DeviceID("card-0"), ())


def after(*versions: tuple[float, bytes]) -> Health:
    health = DeviceHealth()
    for now_s, registered in versions:
        raw = b'{"Data": {"RegisteredDevices": %b}}' % registered
        health.note(parse_registered(raw), now_s=now_s)
    return health.of(CARD)


HEALTHY = b'{"example.com/card": ["card-0", "card-1"]}'
OTHER = b'{"example.com/card": ["card-1"]}'
NONE = b'{"example.com/card": null}'


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        pytest.param([(0, HEALTHY)], Health.HEALTHY, id="it is among them"),
        pytest.param([(0, OTHER)], Health.UNHEALTHY, id="others are"),
        pytest.param([(0, b"{}")], Health.UNKNOWN, id="its resource has no plugin"),
        pytest.param([(0, b"null")], Health.UNKNOWN, id="no resource has"),
        pytest.param([(0, HEALTHY), (1, NONE)], Health.UNKNOWN, id="none is, just now"),
        pytest.param(
            [(1, NONE), (1 + NONE_HEALTHY_FOR_S, NONE)], Health.UNHEALTHY, id="none is, for long"
        ),
        pytest.param(
            [(1, NONE), (2, HEALTHY), (3, NONE)], Health.UNKNOWN, id="none is, again just now"
        ),
    ],
)
def test_health(versions: list[tuple[float, bytes]], expected: Health) -> None:
    assert after(*versions) is expected


def test_a_checkpoint_of_another_shape_is_named() -> None:
    with pytest.raises(NodeUnavailable, match="of no known shape"):
        parse_registered(b'{"Data": {"RegisteredDevices": ["a"]}}')
