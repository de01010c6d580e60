# SPDX-License-Identifier: Apache-2.0
"""What an agent without mounts takes of its node does not grow unseen. With 200 mounts:
tests/soak/test_footprint.py.
"""

from pathlib import Path

from devicemount_agent_api.failpoints import Failpoint
from devicemount_agent_api.v1 import agent_pb2 as pb

from .conftest import Node
from .process import agent_process

# What it is, and a little: 60 MiB is the goal, and docs/evidence/footprint.md says what costs.
IDLE_RSS_KIB = 56 << 10


def rss_kib(pid: int) -> int:
    """Return what the kernel says of a process's memory, libraries included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def test_an_idle_agent_is_small(node: Node) -> None:
    async with agent_process(node, Failpoint.AGENT_AFTER_CLEAR) as running:
        target = node.target()
        assert (await node.apply(target, node.reserved(target, "vcs1"))).phase == pb.GRANTED
        assert (await node.remove(target)).phase == pb.REMOVED
        assert rss_kib(running.process.pid) < IDLE_RSS_KIB
