# SPDX-License-Identifier: Apache-2.0
"""An agent in a process of its own, in which a failpoint is armed at any moment."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields

from devicemount_agent_api.failpoints import EXIT_STATUS, Failpoint
from devicemount_agent_api.tls import agent_channel
from devicemount_agent_api.v1 import agent_pb2_grpc

from .conftest import DEADLINE_S, Node

PROGRAM = """
import os, signal, sys
from pathlib import Path
from devicemount_agent.container import cgroup
from devicemount_agent.graft import shape
from devicemount_agent.__main__ import main
root, point = Path(sys.argv.pop(1)), sys.argv.pop(1)
for name in ("container_cgroup", "owner_of", "pod_cgroup", "process_cgroup"):
    getattr(cgroup, name).__kwdefaults__["root"] = root
signal.signal(signal.SIGUSR2, lambda *_: os.environ.__setitem__("DM_FAILPOINT", point))
shape.NODE_PROCESS = Path("/proc/self")
sys.exit(main())
"""


@dataclass
class AgentProcess:
    """The running agent; `node.stub` speaks to it."""

    process: asyncio.subprocess.Process

    def arm(self) -> None:
        """From now on it ends at its point."""
        self.process.send_signal(signal.SIGUSR2)

    async def ended(self) -> None:
        """Wait until it has ended at its point."""
        async with asyncio.timeout(4 * DEADLINE_S):
            assert await self.process.wait() == EXIT_STATUS


@asynccontextmanager
async def agent_process(node: Node, point: Failpoint) -> AsyncIterator[AgentProcess]:
    """Run an agent for which the point can be armed; it is ended with the block."""
    environment = os.environ | {
        "DM_FAILPOINT_DIR": str(node.directory),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for field in fields(node.settings):
        environment[f"DM_{field.name.upper()}"] = str(getattr(node.settings, field.name))
    command = (sys.executable, "-c", PROGRAM, str(node.lab.root), point.value)
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    channel = agent_channel(node.settings.listen, node.identity_of("devicemount-operator"))
    node.stub = agent_pb2_grpc.AgentStub(channel)  # type: ignore[assignment]
    try:
        async with asyncio.timeout(2 * DEADLINE_S):
            await channel.channel_ready()
        yield AgentProcess(process)
    finally:
        await channel.close(None)
        if process.returncode is None:
            process.kill()
            await process.wait()
