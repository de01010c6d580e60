# SPDX-License-Identifier: Apache-2.0
"""How long each step of a request took, counted from its arrival. Goes into the operator's status
and the bench.
"""

import time


class Timeline:
    """Microseconds after the request came in, by step."""

    def __init__(self) -> None:
        self._start_ns = time.monotonic_ns()
        self.steps_us: dict[str, int] = {}

    def mark(self, step: str) -> None:
        """Note that a step is done; a step that is done again counts from its last time."""
        self.steps_us[step] = (time.monotonic_ns() - self._start_ns) // 1000
