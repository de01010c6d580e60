# SPDX-License-Identifier: Apache-2.0
"""What a kubelet knows of devices, from the file that it writes at every change."""

import json
from pathlib import Path

from devicemount_testbed.cluster import Testbed

CHECKPOINT = "var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"


def checkpoint(testbed: Testbed, node: str) -> Path:
    return testbed.node_root(node) / CHECKPOINT


def healthy(testbed: Testbed, node: str) -> dict[str, set[str]]:
    """Return the ids that the kubelet may give away, by resource."""
    written = checkpoint(testbed, node).read_text()
    registered = json.loads(written)["Data"]["RegisteredDevices"] or {}
    return {resource: set(ids or ()) for resource, ids in registered.items()}
