# SPDX-License-Identifier: Apache-2.0
"""What kstatus, and with it Flux, makes of an object (cli-utils pkg/kstatus/status).

Ported from generic.go and status.go: deletion, generation, Reconciling, Stalled, Ready.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Verdict(Enum):
    IN_PROGRESS = "InProgress"
    FAILED = "Failed"
    CURRENT = "Current"
    TERMINATING = "Terminating"


def verdict(obj: Mapping[str, Any]) -> Verdict:
    meta, status = obj["metadata"], obj.get("status") or {}
    if meta.get("deletionTimestamp"):
        return Verdict.TERMINATING
    observed = status.get("observedGeneration")
    if observed is not None and observed != meta["generation"]:
        return Verdict.IN_PROGRESS
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    if conditions.get("Reconciling") == "True":
        return Verdict.IN_PROGRESS
    if conditions.get("Stalled") == "True":
        return Verdict.FAILED
    if "Ready" in conditions and conditions["Ready"] != "True":
        return Verdict.IN_PROGRESS
    return Verdict.CURRENT
