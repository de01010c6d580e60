# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition, always with a deadline."""

import time
from collections.abc import Callable

from devicemount_testbed.errors import Timeout

POLL_S = 0.05


def wait_until(
    condition: Callable[[], bool],
    *,
    what: str,
    seconds: float,
    hint: str = "see logs",
    poll_s: float = POLL_S,
) -> None:
    """Poll until the condition holds; raise Timeout at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Timeout(what=what, seconds=seconds, hint=hint)
        time.sleep(poll_s)
