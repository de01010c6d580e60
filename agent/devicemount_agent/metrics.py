# SPDX-License-Identifier: Apache-2.0
"""The agent's figures, all of them by name; docs/metrics.md says what they are good for."""

from devicemount_agent_api.exposition import Counter, exposition, gauge

__all__ = ["drift_repairs", "exposition", "gauge", "losses", "restarts"]

drift_repairs = Counter(
    "devicemount_drift_repairs_total",
    "How often a container was given access again that somebody else had taken.",
)

restarts = Counter(
    "devicemount_restarts_total",
    "How often a grant was given again to the next run of its container.",
)
losses = Counter(
    "devicemount_losses_total",
    "How often a reservation was lost, by reason.",
)
