# SPDX-License-Identifier: Apache-2.0
"""The agent's start, in order: journal, kubelet and runtime answer, recovery, and only then anybody
is served.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys

import uvloop

from devicemount_agent import health, service
from devicemount_agent.allocation.kubelet import Checkpoint, PodResources
from devicemount_agent.allocation.read import Allocation
from devicemount_agent.container.cri import Runtime
from devicemount_agent.container.find import Container
from devicemount_agent.container.known import KnownContainers
from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.grafts import Grafts
from devicemount_agent.journal import Journal, boot_id
from devicemount_agent.logs import configure, line
from devicemount_agent.mounts import Mounts
from devicemount_agent.recovery import Recovery
from devicemount_agent.settings import Settings
from devicemount_agent.shadow import ShadowPods
from devicemount_agent.watchers import loss
from devicemount_agent_api.failpoints import armed

NICENESS = -10  # the few milliseconds of a grant compete with the sandbox that the kubelet starts
SWITCH_INTERVAL_S = 0.001  # so that a search in a thread holds a grant up for no longer
RETRY_S = 0.2  # kubelet and runtime may start after us
STOP_GRACE_S = 2.0  # for calls under way; what was begun is in the journal
FAILPOINT_DIRECTORY = "/run/devicemount"

log = logging.getLogger("devicemount_agent")


class Agent:
    """All parts, put together."""

    def __init__(self, settings: Settings) -> None:
        """Open the journal and the watches. Needs a running event loop. Raises OSError."""
        self._settings = settings
        self._ends: set[asyncio.Task[None]] = set()
        self._is_recovered = False
        self.journal = Journal(settings.journal_directory, boot_id=boot_id())
        self.runtime = Runtime(settings.cri_socket)
        self.checkpoint = Checkpoint(settings.device_plugins_directory)
        self.pod_resources = PodResources(settings.pod_resources_socket)
        self.allocation = Allocation(self.checkpoint, self.pod_resources)
        self.shadow_pods = ShadowPods(self.runtime)
        self.containers = KnownContainers(self.runtime, self._ended)
        self.grafts = Grafts(self.journal, self.containers, hold=settings.hold)
        self.mounts = Mounts(
            journal=self.journal,
            grafts=self.grafts,
            containers=self.containers,
            allocation=self.allocation,
            shadow_pods=self.shadow_pods,
            runtime=self.runtime,
        )

    async def run(self, stopped: asyncio.Event) -> None:
        """Serve until told to end."""
        probes = await health.serve(self._settings.health_port, is_ready=self._amiss)
        if self.journal.damage:
            log.error(line("found damaged journal", damage=self.journal.damage))
        await self._recover()
        server = await service.start(
            self._settings.listen, self._settings.tls_directory, self.mounts
        )
        self._is_recovered = True
        log.info(line("served", listen=self._settings.listen))
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(loss.watch(self.checkpoint, self.pod_resources, self.mounts))
            await stopped.wait()
            await server.stop(STOP_GRACE_S)
            await self.mounts.finish()
            watch.cancel()
        probes.close()

    async def close(self) -> None:
        """Close what is open. Grants stay: the next agent finds them in the journal."""
        self.shadow_pods.close()
        self.containers.close()
        self.checkpoint.close()
        await self.pod_resources.close()
        await self.runtime.close()
        self.journal.close()

    async def _recover(self) -> None:
        recovery = Recovery(
            journal=self.journal,
            grafts=self.grafts,
            containers=self.containers,
            allocation=self.allocation,
            shadow_pods=self.shadow_pods,
        )
        while True:
            amiss = await self._node_amiss()
            if not amiss:
                try:
                    return await recovery.run()
                except NodeUnavailable as error:
                    amiss = str(error)
            log.warning(line("waited for the node", amiss=amiss))
            await asyncio.sleep(RETRY_S)

    async def _amiss(self) -> str:
        """Say why the agent is not ready."""
        if not self._is_recovered:
            return "the journal is not replayed yet"
        return self.journal.damage or await self._node_amiss()

    async def _node_amiss(self) -> str:
        try:
            await self.runtime.check()
            await self.pod_resources.list()
        except NodeUnavailable as error:
            return str(error)
        return ""

    def _ended(self, container: Container) -> None:
        log.info(line("ended", container=container.id[:12], pod_uid=container.pod_uid))
        task = asyncio.create_task(self.mounts.forget_ended(container))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)


async def serve(settings: Settings) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    agent = Agent(settings)
    try:
        await agent.run(stopped)
    finally:
        await agent.close()


def main() -> int:
    """Run the agent; the exit status says whether it could."""
    configure()
    os.environ.setdefault("DM_FAILPOINT_DIR", FAILPOINT_DIRECTORY)
    armed()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        uvloop.run(serve(Settings.from_environment()))
    except (OSError, ValueError) as error:
        log.error(line("could not start", error=repr(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
