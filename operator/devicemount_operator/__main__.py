# SPDX-License-Identifier: Apache-2.0
"""Starts the operator: settings, health endpoint, election, then everything that the leader
runs."""

import asyncio
import logging
import os
import signal
import sys
import tempfile
import time

import uvloop

from devicemount_agent_api import failpoints
from devicemount_operator import errors, health, metrics
from devicemount_operator.cluster import Leases
from devicemount_operator.controller import Controller, Health
from devicemount_operator.election import Election, LeaseTimes
from devicemount_operator.settings import MissingSetting, Settings, from_environment
from devicemount_operator.transport import Transport

log = logging.getLogger(__name__)


def main() -> None:
    """Run with what the manifests set."""
    try:
        settings = from_environment()
        os.environ.setdefault("DM_FAILPOINT_DIR", tempfile.gettempdir())
        failpoints.armed()
    except (MissingSetting, ValueError) as error:
        sys.exit(f"devicemount-operator: {error}")
    main_with(settings)


def main_with(settings: Settings) -> None:
    """Run until told to end; exit status 1 when the Lease is lost or something essential ended."""
    _log_to_stderr()
    is_lost = False
    try:
        uvloop.run(until_signalled(settings))
    except* errors.LeaseLost as lost:
        log.error("ended: %s", lost.exceptions[0])
        is_lost = True  # an exit from in here would be a traceback
    if is_lost:
        sys.exit(1)


async def until_signalled(settings: Settings) -> None:
    """As PID 1 a process ignores the signals that it does not handle.

    Kopf takes them over later.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(settings, stop=stop)


async def run(settings: Settings, *, stop: asyncio.Event) -> None:
    """Serve health, wait for the Lease, work until told to stop, give the Lease back."""
    transport = await Transport.connect()
    election = Election(
        Leases(transport),
        namespace=settings.namespace,
        identity=settings.identity,
        times=LeaseTimes(
            duration_s=settings.lease_duration_s,
            renew_deadline_s=settings.lease_renew_deadline_s,
            retry_s=settings.lease_retry_s,
            watch_s=settings.lease_watch_s,
        ),
    )
    state = Health(election)
    metrics.gauge(
        "devicemount_leader",
        "Whether this process holds the Lease.",
        election.still_leading,
    )
    try:
        async with health.serve(port=settings.health_port, live=state.live, ready=state.ready):
            epoch = await election.acquire(stop)
            if epoch is None:
                return
            state.controller = Controller(
                transport=transport, settings=settings, election=election, epoch=epoch, stop=stop
            )
            try:
                await state.controller.run()
            finally:
                await election.release()
    finally:
        await transport.close()


def _log_to_stderr() -> None:
    """One line a fact, with UTC time to the millisecond."""
    handler = logging.StreamHandler()
    line = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s"
    formatter = logging.Formatter(line, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


if __name__ == "__main__":
    main()
