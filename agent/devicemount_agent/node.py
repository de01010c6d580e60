# SPDX-License-Identifier: Apache-2.0
"""What this node is, for those who look for the cause of something: nothing is decided by it."""

import os
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.container.cgroup import CGROUP_ROOT
from devicemount_agent.kernel.files import CGROUP2_SUPER_MAGIC, statfs_type
from devicemount_agent_api.version import VERSION

UNIFIED = "unified"  # where systemd mounts the v2 hierarchy beside those of v1


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """As rpc Node says it."""

    cgroup_mode: str  # "v1", "v2", or "hybrid": devices on v1 beside a v2 hierarchy
    kernel: str
    runtime: str
    boot_id: str
    version: str


def node_facts(*, runtime: str, boot_id: str) -> NodeFacts:
    """Describe the node; `runtime` is what CRI calls itself."""
    return NodeFacts(
        cgroup_mode=cgroup_mode(CGROUP_ROOT),
        kernel=os.uname().release,
        runtime=runtime,
        boot_id=boot_id,
        version=VERSION,
    )


def cgroup_mode(root: Path) -> str:
    """Return "v1", "v2" or "hybrid". Raises OSError where no hierarchy is mounted."""
    if statfs_type(str(root)) == CGROUP2_SUPER_MAGIC:
        return "v2"
    try:
        is_hybrid = statfs_type(str(root / UNIFIED)) == CGROUP2_SUPER_MAGIC
    except FileNotFoundError:
        is_hybrid = False
    return "hybrid" if is_hybrid else "v1"
