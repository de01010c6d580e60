# SPDX-License-Identifier: Apache-2.0
"""One way to any vendor's stand-in, for tests that only need the vendor to be there."""

from contextlib import AbstractContextManager

from devicemount_testbed.cluster import Testbed
from vendors.ascend import ascend
from vendors.nvidia import nvidia
from vendors.volcano import volcano

MACHINES = {"nvidia": nvidia, "volcano": volcano, "ascend": ascend}


def machine(testbed: Testbed, node: str, vendor: str) -> AbstractContextManager[object]:
    """Make the node a machine of the vendor, with its device plugin, until the context's end."""
    return MACHINES[vendor](testbed, node)
