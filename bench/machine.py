# SPDX-License-Identifier: Apache-2.0
"""What a figure is worth nothing without: the machine and the commit that it is of."""

import os
import platform
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNVERSIONED = "unversioned"  # a copy of the sources without their history


def machine() -> dict[str, str | int]:
    """Return the processor, how many of them, memory and kernel."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "processor": model[1] if model else platform.machine(),
        "processors": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
    }


def commit() -> str:
    """Return the commit of the sources, with -dirty where they differ from it."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() if found.returncode == 0 else UNVERSIONED


def load_average() -> float:
    """Return the load average over one minute."""
    return os.getloadavg()[0]
