# SPDX-License-Identifier: Apache-2.0
"""One clock for everything: CLOCK_MONOTONIC, which the prober in the target reads as well."""

import time
from typing import NewType

Nanoseconds = NewType("Nanoseconds", int)

NS_PER_MS = 1_000_000


def now() -> Nanoseconds:
    return Nanoseconds(time.monotonic_ns())


def ms_between(start: Nanoseconds, end: Nanoseconds) -> float:
    return (end - start) / NS_PER_MS
