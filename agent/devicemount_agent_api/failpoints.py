# SPDX-License-Identifier: Apache-2.0
"""The points where a test may kill the operator or the agent, all in one place.

`DM_FAILPOINT=<name>` arms one. It fires once: a marker file in `DM_FAILPOINT_DIR` outlives the
process, so that the restarted one gets past the point. Nothing is armed in production; an unknown
name stops the program at its start.
"""

import os
from enum import Enum
from pathlib import Path

EXIT_STATUS = 137  # what a container runtime reports for SIGKILL


class Failpoint(Enum):
    """Where it fires, by the name that `DM_FAILPOINT` gives."""

    OPERATOR_BEFORE_SHADOW_POD = "operator-before-shadow-pod"
    OPERATOR_AFTER_SHADOW_POD = "operator-after-shadow-pod"
    OPERATOR_BEFORE_APPLY = "operator-before-apply"
    OPERATOR_AFTER_GRANT = "operator-after-grant"
    OPERATOR_AFTER_STATUS = "operator-after-status"
    OPERATOR_BEFORE_REVOKE = "operator-before-revoke"
    OPERATOR_AFTER_REVOKE = "operator-after-revoke"
    OPERATOR_AFTER_DELETE = "operator-after-delete"
    OPERATOR_AFTER_FINALIZER = "operator-after-finalizer"
    AGENT_AFTER_INTENT = "agent-after-intent"
    AGENT_AFTER_MOUNTS = "agent-after-mounts"
    AGENT_AFTER_GRANT = "agent-after-grant"
    AGENT_BEFORE_COMMIT = "agent-before-commit"
    AGENT_AFTER_REVOKE = "agent-after-revoke"
    AGENT_AFTER_CLEAR = "agent-after-clear"
    AGENT_AFTER_LOST = "agent-after-lost"
    AGENT_BEFORE_REPAIR = "agent-before-repair"
    AGENT_AFTER_REPAIR = "agent-after-repair"
    AGENT_BEFORE_RESTART = "agent-before-restart"


def armed() -> Failpoint | None:
    """Return the armed failpoint. Raises ValueError for a name that is none."""
    name = os.environ.get("DM_FAILPOINT", "")
    return Failpoint(name) if name else None


def fire(point: Failpoint) -> None:
    """End the process without any clean-up if this point is armed and has not fired before."""
    if armed() is not point:
        return
    marker = Path(os.environ["DM_FAILPOINT_DIR"]) / f"fired-{point.value}"
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    os._exit(EXIT_STATUS)
