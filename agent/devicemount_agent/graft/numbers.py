# SPDX-License-Identifier: Apache-2.0
"""Device numbers as files carry them: type bits and rdev."""

import os
import stat

from devicemount_agent.model import DeviceNumber, NodeType

_FILE_TYPE = {NodeType.CHAR: stat.S_IFCHR, NodeType.BLOCK: stat.S_IFBLK}
_NODE_TYPE = {file_type: node_type for node_type, file_type in _FILE_TYPE.items()}


def from_file(mode: int, rdev: int) -> DeviceNumber | None:
    """Return the number of a file with these st_mode and st_rdev, None if it is no device node."""
    node_type = _NODE_TYPE.get(stat.S_IFMT(mode))
    if node_type is None:
        return None
    return DeviceNumber(kind=node_type.value, major=os.major(rdev), minor=os.minor(rdev))


def mknod_arguments(number: DeviceNumber, *, mode: int) -> tuple[int, int]:
    """Return mode and device for mknod(2)."""
    return _FILE_TYPE[number.node_type] | mode, os.makedev(number.major, number.minor)
