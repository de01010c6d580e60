# SPDX-License-Identifier: Apache-2.0
"""How long a pass that failed is waited with."""

import pytest

from devicemount_operator import errors
from devicemount_operator.retries import Retries

DOWN = errors.Unreachable("down")


def test_each_failure_in_a_row_doubles_the_pause_up_to_a_limit() -> None:
    retries = Retries()
    assert [retries.pause_s("a", DOWN) for _ in range(6)] == [1, 2, 4, 8, 15, 15]
    assert retries.pause_s("b", DOWN) == 1
    retries.over("a")
    assert retries.pause_s("a", DOWN) == 1


@pytest.mark.parametrize(("asked_s", "pause_s"), [(0.1, 1.0), (40.0, 40.0)])
def test_the_api_server_is_given_the_time_that_it_asks_for(asked_s: float, pause_s: float) -> None:
    busy = errors.TooManyRequests("busy", status=429, retry_after_s=asked_s)
    assert Retries().pause_s("a", busy) == pause_s


def test_a_bug_is_not_worth_trying_often() -> None:
    assert Retries().pause_s("a", KeyError("spec")) == 30
