# SPDX-License-Identifier: Apache-2.0
"""Device numbers as files carry them (type bits and rdev), and as the kernel lists drivers."""

import os
import re
import stat

from devicemount_agent.model import DeviceNumber, NodeType

_FILE_TYPE = {NodeType.CHAR: stat.S_IFCHR, NodeType.BLOCK: stat.S_IFBLK}
_DRIVER = re.compile(r"(?P<major>[0-9]{1,9}) (?P<name>.+)")
_NODE_TYPE = {file_type: node_type for node_type, file_type in _FILE_TYPE.items()}


def from_file(mode: int, rdev: int) -> DeviceNumber | None:
    """Return the number of a file with these st_mode and st_rdev, None if it is no device node."""
    node_type = _NODE_TYPE.get(stat.S_IFMT(mode))
    if node_type is None:
        return None
    return DeviceNumber(kind=node_type.value, major=os.major(rdev), minor=os.minor(rdev))


def character_drivers(devices: str) -> frozenset[tuple[int, str]]:
    """Parse the character devices of /proc/devices: major numbers and what their drivers say."""
    characters = devices.partition("Block devices:")[0]
    found = (_DRIVER.fullmatch(line.strip()) for line in characters.splitlines())
    return frozenset((int(one["major"]), one["name"]) for one in found if one is not None)


def mknod_arguments(number: DeviceNumber, *, mode: int) -> tuple[int, int]:
    """Return mode and device for mknod(2)."""
    return _FILE_TYPE[number.node_type] | mode, os.makedev(number.major, number.minor)
