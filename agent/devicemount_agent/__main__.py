# SPDX-License-Identifier: Apache-2.0
"""The agent's start, in order: journal, kubelet and runtime answer, recovery, and only then, and
from when it has certificates, anybody is served.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path

import uvloop

from devicemount_agent import directories, health, metrics, service
from devicemount_agent.allocation.kubelet import Checkpoint, PodResources
from devicemount_agent.allocation.parts import allocation_on
from devicemount_agent.bell import Bell
from devicemount_agent.certificates import Certificates
from devicemount_agent.container.cri import Runtime
from devicemount_agent.container.find import Container
from devicemount_agent.container.known import KnownContainers
from devicemount_agent.device_health import DeviceHealth
from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.graft.files import Files
from devicemount_agent.graft.sources import Sources
from devicemount_agent.grafts import Grafts
from devicemount_agent.holders.freeze import Freezer
from devicemount_agent.journal import Journal, boot_id
from devicemount_agent.journal_report import report
from devicemount_agent.ledger import Grant
from devicemount_agent.logs import configure, line
from devicemount_agent.losses import Losses
from devicemount_agent.mounts import Mounts
from devicemount_agent.node import NodeFacts, node_facts
from devicemount_agent.nvml import Nvml
from devicemount_agent.rebuild import Rebuild
from devicemount_agent.recovery import Recovery
from devicemount_agent.renewal import Renewal
from devicemount_agent.settings import Settings
from devicemount_agent.shadow import ShadowPods
from devicemount_agent.usability import Usability
from devicemount_agent.watchers import loss
from devicemount_agent.watchers.drift import Drift
from devicemount_agent.watchers.fence import Fences, is_reserved
from devicemount_agent.watchers.health import watch as watch_health
from devicemount_agent.watchers.restart import Restarts
from devicemount_agent.withdrawal import Withdrawal
from devicemount_agent_api.failpoints import armed
from devicemount_agent_api.tls import AGENT_NAME
from devicemount_agent_api.version import VERSION

NICENESS = -10  # the few milliseconds of a grant compete with the sandbox that the kubelet starts
SWITCH_INTERVAL_S = 0.001  # so that a search in a thread holds a grant up for no longer
RETRY_S = 0.2  # kubelet and runtime may start after us
STOP_GRACE_S = 2.0  # for calls under way; what was begun is in the journal
FAILPOINT_DIRECTORY = "/run/devicemount"

log = logging.getLogger("devicemount_agent")


class Agent:
    """All parts, put together."""

    def __init__(self, settings: Settings, certificates: Certificates | None = None) -> None:
        """Open the journal and the watches. Needs a running event loop. Raises OSError."""
        self._settings = settings
        self._ends: set[asyncio.Task[None]] = set()
        self._is_recovered = False
        self.certificates = certificates or Certificates(settings.tls_directory, name=AGENT_NAME)
        self.journal = Journal(settings.journal_directory, boot_id=boot_id())
        self.runtime = Runtime(settings.cri_socket)
        self.bell = Bell()
        self.checkpoint = Checkpoint(settings.device_plugins_directory, self.bell)
        self.pod_resources = PodResources(settings.pod_resources_socket)
        nvml = Nvml(settings.node_root)
        self.allocation = allocation_on(
            settings,
            checkpoint=self.checkpoint,
            pod_resources=self.pod_resources,
            runtime=self.runtime,
            instances=nvml.mig_device,
        )
        self.shadow_pods = ShadowPods(self.runtime)
        self.containers = KnownContainers(self.runtime, self._ended)
        files = Files(settings.files_directory.resolve())
        self.grafts = Grafts(
            self.journal,
            self.containers,
            hold=settings.hold,
            sources=Sources(node_root=settings.node_root, own=files.root),
            files=files,
        )
        self.freezer = Freezer(settings.journal_directory.parent / "frozen")
        self.withdrawal = Withdrawal(
            self.grafts,
            hold=settings.hold,
            freezer=self.freezer,
            container=self.runtime.container,
            users=nvml.users,
        )
        self.health = DeviceHealth()
        self.usability = Usability(
            self.allocation, self.containers, self.health, lock=self.grafts.lock
        )
        self.losses = Losses(
            self.journal,
            self.grafts,
            self.withdrawal,
            self.shadow_pods,
            is_reserved=self._is_reserved,
        )
        self.fences = Fences(
            self.shadow_pods,
            self.pod_resources,
            self.losses,
            ledger=lambda: self.grafts.ledger,
        )
        self.mounts = Mounts(
            journal=self.journal,
            grafts=self.grafts,
            withdrawal=self.withdrawal,
            losses=self.losses,
            containers=self.containers,
            allocation=self.allocation,
            shadow_pods=self.shadow_pods,
            runtime=self.runtime,
            usability=self.usability,
        )
        self.recovery = Recovery(
            journal=self.journal,
            grafts=self.grafts,
            losses=self.losses,
            containers=self.containers,
            checkpoint=self.checkpoint,
            pod_resources=self.pod_resources,
            allocation=self.allocation,
            usability=self.usability,
        )
        self.restarts = Restarts(
            grafts=self.grafts,
            withdrawal=self.withdrawal,
            losses=self.losses,
            containers=self.containers,
            runtime=self.runtime,
            usability=self.usability,
            bell=self.bell,
            is_reserved=self._is_reserved,
            confirm=self.mounts.confirm,
        )
        self.rebuild = Rebuild(
            journal=self.journal,
            grafts=self.grafts,
            runtime=self.runtime,
            checkpoint=self.checkpoint,
            allocation=self.allocation,
            hold=settings.hold,
        )
        self.renewal = Renewal(
            self.grafts, self.containers, self.health, confirm=self.mounts.confirm
        )
        self.drift = Drift(self.grafts, self.bell)
        metrics.gauge(
            "devicemount_agent_polling",
            "1 while inotify instances or watches are used up and directories are polled.",
            lambda: self.bell.is_polling,
        )
        metrics.gauge(
            "devicemount_agent_journal_damaged",
            "1 while the journal is damaged: nothing is granted.",
            lambda: bool(self.journal.damage),
        )

    async def run(self, stopped: asyncio.Event) -> None:
        """Serve until told to end."""
        self.freezer.thaw_left()
        probes = await health.serve(self._settings.health_port, is_ready=self._amiss)
        if self.journal.damage:
            log.error(line("found damaged journal", damage=self.journal.damage))
        await self._recover()
        self._is_recovered = True
        self.restarts.begin()
        async with asyncio.TaskGroup() as tasks:
            watches = [tasks.create_task(watch) for watch in self._watches()]
            await self._serve(stopped)
            await self.mounts.finish()
            for watch in watches:
                watch.cancel()
            await self.restarts.finish()
            await self.renewal.finish()
            await self.losses.finish()
            await self.drift.finish()
        probes.close()

    async def close(self) -> None:
        """Close what is open. Grants stay: the next agent finds them in the journal."""
        self.shadow_pods.close()
        self.grafts.holders.close()
        self.containers.close()
        self.bell.close()
        self.checkpoint.close()
        await self.pod_resources.close()
        await self.runtime.close()
        self.journal.close()

    def _watches(self) -> Iterator[Coroutine[None, None, None]]:
        yield self.drift.watch()
        yield self.rebuild.keep(self._recover_again)
        yield self.fences.watch()
        yield loss.watch(
            self.checkpoint,
            self.pod_resources,
            self.losses,
            ledger=lambda: self.grafts.ledger,
        )
        yield watch_health(
            self.checkpoint,
            self.pod_resources,
            self.usability,
            self.renewal,
            ledger=lambda: self.grafts.ledger,
            changes=self.grafts.changes,
        )

    async def _recover(self) -> None:
        said = ""
        while True:
            amiss = await self._node_amiss()
            if not amiss:
                try:
                    await self.rebuild.doubt()
                    if self.journal.damage:
                        await self.rebuild.run()
                    return await self.recovery.run()
                except NodeUnavailable as error:
                    amiss = str(error)
            if amiss != said:  # as long as it stays the same, once is enough; probes fail meanwhile
                log.warning(line("waited for the node", amiss=amiss))
                said = amiss
            await asyncio.sleep(RETRY_S)

    async def _recover_again(self) -> None:
        await self.recovery.run()
        self.restarts.begin()

    async def _serve(self, stopped: asyncio.Event) -> None:
        """Serve until told to end, from when there are certificates; grants need none to live."""
        said = ""
        while await asyncio.to_thread(self.certificates.now_shown) is None:
            if stopped.is_set():
                return
            amiss = await asyncio.to_thread(self.certificates.amiss)
            if amiss != said:
                log.warning(line("waited for certificates", amiss=amiss))
                said = amiss
            await asyncio.sleep(RETRY_S)
        server = await service.start(
            self._settings.listen,
            self.certificates,
            self.mounts,
            about=self.allocation.about,
            node=self._facts,
        )
        log.info(line("served", listen=self._settings.listen))
        await stopped.wait()
        self.grafts.changes.close()  # else who watches would use up the grace
        await server.stop(STOP_GRACE_S)

    async def _amiss(self) -> str:
        """Say why the agent is not ready."""
        if not self._is_recovered:
            return "the journal is not replayed yet"
        if self.journal.damage:
            return f"the journal is damaged: {self.journal.damage}; {self.rebuild.amiss}"
        own = await asyncio.to_thread(self.certificates.amiss)
        return own or await self._node_amiss()

    async def _node_amiss(self) -> str:
        if lacking := directories.lacking(self._settings):
            return lacking
        try:
            await self.runtime.version()
            await self.pod_resources.list()
        except NodeUnavailable as error:
            return str(error)
        return ""

    async def _facts(self) -> NodeFacts:
        return node_facts(runtime=await self.runtime.version(), boot_id=boot_id())

    async def _is_reserved(self, grant: Grant) -> bool:
        return is_reserved(grant, await self.pod_resources.list())

    def _ended(self, container: Container) -> None:
        log.info(line("ended", container=container.id[:12], pod_uid=container.pod_uid))
        self.restarts.expect(container)
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
    """Run the agent, or the one command that reads what it wrote."""
    parser = argparse.ArgumentParser(
        prog="devicemount-agent", description="The node agent; without a command it serves."
    )
    parser.add_argument("--version", action="version", version=VERSION)
    reading = parser.add_subparsers(dest="command").add_parser(
        "journal", help="print what the agent has written of its grants; it may be running"
    )
    reading.add_argument("--directory", type=Path, help="default: the running agent's")
    arguments = parser.parse_args()
    return _print_journal(arguments.directory) if arguments.command == "journal" else _run()


def _print_journal(directory: Path | None) -> int:
    directory = directory or Settings.from_environment().journal_directory
    try:
        for text in report(directory, boot_id=boot_id()):
            sys.stdout.write(f"{text}\n")
    except OSError as error:
        sys.stderr.write(f"devicemount-agent: {error}\n")
        return 1
    return 0


def _run() -> int:
    """The exit status says whether it could."""
    configure()
    os.environ.setdefault("DM_FAILPOINT_DIR", FAILPOINT_DIRECTORY)
    armed()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a handful for each container
    try:
        uvloop.run(serve(Settings.from_environment()))
    except (OSError, ValueError) as error:
        log.error(line("could not start", error=f"{type(error).__name__}: {error}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
