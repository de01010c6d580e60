# SPDX-License-Identifier: Apache-2.0
"""Says whether a device can be given away: so far, whether its node is there."""

import stat
from enum import Enum
from pathlib import Path


class Health(Enum):
    """A device's state as the kubelet spells it."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


def is_device_node(path: str, *, root: Path) -> bool:
    """Whether a character or block device stands at `path` (of the node, below `root` here)."""
    try:
        mode = (root / path.removeprefix("/")).stat().st_mode
    except OSError:  # absent, or a symlink to what is absent
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def health_of(path: str, *, root: Path) -> Health:
    return Health.HEALTHY if is_device_node(path, root=root) else Health.UNHEALTHY
