# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition, with a deadline."""

import time
from collections.abc import Callable

import pytest

DEADLINE_S = 5.0


def until(condition: Callable[[], object], *, what: str) -> None:
    """Return as soon as `condition` is true; fail the test after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {DEADLINE_S} s: {what}")
        time.sleep(0.005)
