# SPDX-License-Identifier: Apache-2.0
"""By which other names than their own a process may have terminals.

/dev/tty is whatever terminal controls the process that opens it, and every runtime lets every
container open it; /dev/console and /dev/tty0 lead to others too. Such a descriptor shows the other
name's number. Which terminal it is only a copy of it could say, and to close the copy of what a
tenant has put in its place meanwhile may wait for his file server, for ever: so nobody asks.
"""

import os
from collections.abc import Iterable
from typing import Final

from devicemount_agent.holders.describe import controlling_terminal
from devicemount_agent.kernel.files import lines_of
from devicemount_agent.model import DeviceNumber

STAND_INS: Final = frozenset(
    (DeviceNumber("c", 5, 0), DeviceNumber("c", 5, 1), DeviceNumber("c", 4, 0))
)
DRIVERS: Final = "/proc/tty/drivers"


def controlling(pid: int) -> int:
    """Return the number of the terminal that the process can open as /dev/tty, 0 for none."""
    try:
        return controlling_terminal(pid)
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0


def are_terminals(numbers: Iterable[int]) -> bool:
    """Say whether one of these character devices is a terminal."""
    ranges = [_range(line) for line in lines_of(DRIVERS) if line]
    return any(
        os.major(number) == major and first <= os.minor(number) <= last
        for number in numbers
        for major, first, last in ranges
    )


def _range(line: str) -> tuple[int, int, int]:
    """Return the major number and the first and last minor of a driver's line."""
    major, minors = line.split()[-3:-1]
    first, _, last = minors.partition("-")
    return int(major), int(first), int(last or first)
