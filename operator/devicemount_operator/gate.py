# SPDX-License-Identifier: Apache-2.0
"""Whether the API server may be asked now: one that cannot be reached, or asks for rest, is left
alone by everybody, and not tried by each of ten thousand mounts in turn.

Closed for a moment after a connection that failed, longer each time, and for as long as a server
asks that asks for more than one request has time for. Leases are not kept back.
"""

import time
from collections.abc import Callable
from typing import Final

from devicemount_operator import errors
from devicemount_operator.reasons import Pace

PACE: Final = Pace(0.05, 2.0)  # how long nobody tries after a connection that failed
LONGEST_S: Final = 60.0  # that the API server may ask for


class Gate:
    """One for all requests but the Lease's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0  # in a row
        self._why: errors.ApiError | None = None
        self._until = 0.0

    def check(self) -> None:
        """Raise what closed it, while it is closed."""
        left_s = self._until - self._clock()
        if self._why is None or left_s <= 0:
            return
        if isinstance(self._why, errors.TooManyRequests):
            raise errors.TooManyRequests(str(self._why), status=429, retry_after_s=left_s)
        raise errors.Unreachable(f"not tried again yet: {self._why}")

    def answered(self) -> None:
        """Note that the server can be reached."""
        self._failures, self._why = 0, None

    def failed(self, error: errors.ApiError) -> None:
        """Note how a request ended: most errors are answers."""
        match error:
            case errors.TooManyRequests():
                self._failures, pause_s = 0, min(error.retry_after_s, LONGEST_S)
            case errors.NotConnected():
                self._failures += 1
                pause_s = PACE.pause_s(self._failures)
            case _:
                self.answered()
                return
        self._why, self._until = error, self._clock() + pause_s
