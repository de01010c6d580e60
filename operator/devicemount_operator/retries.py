# SPDX-License-Identifier: Apache-2.0
"""How long a key waits after a pass that failed: longer each time, and as long as the API server
asks.

Only for passes that could not report: what an action was refused is a setback, which `decide` paces
(`reasons.Pace`). The queue spreads these pauses, so that what failed together does not come back
together.
"""

from typing import Final

from devicemount_operator import errors
from devicemount_operator.reasons import PATIENT, Pace

AFTER_BUG: Final = Pace(30.0, 600.0)


class Retries:
    """Failures in a row, by key."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}

    def pause_s(self, key: str, error: Exception) -> float:
        """Count a failure; return the pause after it."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pace = PATIENT if isinstance(error, errors.DeviceMountError) else AFTER_BUG
        asked_s = error.retry_after_s if isinstance(error, errors.TooManyRequests) else 0.0
        return max(pace.pause_s(failures), asked_s)

    def over(self, key: str) -> None:
        """Note that a pass succeeded."""
        self._failures.pop(key, None)
