# SPDX-License-Identifier: Apache-2.0
"""The operator's figures, all of them by name; docs/metrics.md says what they are good for.

What a leader alone knows (`mounts`, `queue_depth`) is asked of it whenever figures are read, and is
left out by a standby.
"""

from typing import Final

from devicemount_agent_api.exposition import Counter, Histogram, exposition, gauge, gauges

__all__ = [
    "api_writes",
    "discharges",
    "exposition",
    "failures",
    "gauge",
    "gauges",
    "reconcile_seconds",
]

FROM_A_MILLISECOND: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    10,
    30,
)

reconcile_seconds = Histogram(
    "devicemount_reconcile_seconds",
    "How long a pass over one mount takes, with the agent's part where it waits for it.",
    FROM_A_MILLISECOND,
)
failures = Counter(
    "devicemount_reconcile_failures_total",
    "How often a pass could not report, by the class of the error.",
)
api_writes = Counter(
    "devicemount_api_writes_total",
    "Requests to the API server that create, change or delete something, by verb; not the Lease's.",
)
discharges = Counter(
    "devicemount_released_without_agent_total",
    "Devices given back of which no agent says so, by what stands for its word.",
)
