# SPDX-License-Identifier: Apache-2.0
"""For how long nobody asks the API server."""

import pytest

from devicemount_operator import errors
from devicemount_operator.gate import LONGEST_S, Gate

CUT = errors.NotConnected("refused")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def is_open(gate: Gate) -> bool:
    try:
        gate.check()
    except errors.ApiError:
        return False
    return True


def test_the_pause_after_connections_that_fail_grows_and_ends_with_an_answer() -> None:
    clock = Clock()
    gate = Gate(clock)
    pauses: list[float] = []
    for _ in range(8):
        gate.failed(CUT)
        began = clock.now
        while not is_open(gate):
            clock.now += 0.05
        pauses.append(round(clock.now - began, 2))
    assert pauses[0] <= 0.1
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(2.0, abs=0.1)
    gate.failed(CUT)
    gate.answered()
    assert is_open(gate)


@pytest.mark.parametrize(("asked_s", "waited_s"), [(30.0, 30.0), (1e6, LONGEST_S)])
def test_it_is_closed_for_as_long_as_the_server_asks(asked_s: float, waited_s: float) -> None:
    clock = Clock()
    gate = Gate(clock)
    gate.failed(errors.TooManyRequests("busy", status=429, retry_after_s=asked_s))
    clock.now += 10
    with pytest.raises(errors.TooManyRequests) as refused:
        gate.check()
    assert refused.value.retry_after_s == waited_s - 10
    clock.now += waited_s
    assert is_open(gate)
