# SPDX-License-Identifier: Apache-2.0
"""What the testbed tells the person who started it: plain lines on standard error.

Standard output belongs to what a verb answers (a table, a log, kubectl's output).
"""

import sys
import time

A_MINUTE_S = 60


def say(line: str) -> None:
    print(f"testbed: {line}", file=sys.stderr, flush=True)


def took(began: float) -> str:
    """Format the time since `began`, a value of time.monotonic()."""
    seconds = time.monotonic() - began
    if seconds < A_MINUTE_S:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
