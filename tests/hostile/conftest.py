# SPDX-License-Identifier: Apache-2.0
"""Tenants who mean it, against a whole agent on the real kernel; counts by environment, so that the
same tests run small in `make test` and long in `make soak`.
"""

import os

from component.agent.conftest import authority, hierarchy, hold, node, v1
from node.agent.conftest import either, node_process, v2, vcsa, vcsu

__all__ = [
    "authority",
    "either",
    "hierarchy",
    "hold",
    "node",
    "node_process",
    "v1",
    "v2",
    "vcsa",
    "vcsu",
]


def count(name: str, default: int) -> int:
    """Return how often something is done: HOSTILE_<name>, else what `make test` has time for."""
    return int(os.environ.get(f"HOSTILE_{name}", default))
