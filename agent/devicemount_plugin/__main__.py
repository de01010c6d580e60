# SPDX-License-Identifier: Apache-2.0
"""Starts the device plugin: configuration, probes, then a server for each resource."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent_api.version import VERSION
from devicemount_plugin.config import Config, ConfigError, read_config
from devicemount_plugin.hotplug import keep_inventories
from devicemount_plugin.inventory import Inventory
from devicemount_plugin.metrics import exposition
from devicemount_plugin.missing import Report
from devicemount_plugin.probes import serve_probes
from devicemount_plugin.registration import Registration

DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
REPORTS = Path("/run/devicemount-plugin")
PROBE_PORT = 8080
ALL_ADDRESSES = ""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the plugin finds what it works with."""

    root: Path  # the node's /dev and /sys lie below it
    device_plugins: Path  # the kubelet's socket and the plugin's own
    reports: Path  # what the agent reads, and what a plugin leaves to the next one
    probe_port: int


async def run(config: Config, places: Places) -> None:
    """Serve every resource of the configuration until cancelled."""
    inventories = [
        Inventory(resource, root=places.root, reports=places.reports)
        for resource in config.resources
    ]
    registrations = [Registration(one, directory=places.device_plugins) for one in inventories]
    report = Report(places.reports)

    def not_registered() -> list[str]:
        return [_waiting_for(one) for one in registrations if not one.is_current()]

    def report_missing() -> None:
        report.write({one.resource_name: one.missing for one in inventories})

    async def serve(registration: Registration) -> None:
        await registration.inventory.refresh()  # what is registered first is what is there
        report_missing()
        await registration.keep()

    probes = serve_probes(
        host=ALL_ADDRESSES,
        port=places.probe_port,
        not_ready=not_registered,
        metrics=lambda: exposition(registrations),
    )
    try:
        async with probes, asyncio.TaskGroup() as tasks:
            tasks.create_task(keep_inventories(inventories, on_rescan=report_missing))
            for registration in registrations:
                tasks.create_task(serve(registration))
    finally:
        report.write({one.resource_name: "" for one in inventories})


def _waiting_for(registration: Registration) -> str:
    why = f" ({registration.refusal})" if registration.refusal else ""
    return f"{registration.resource_name}{why}"


async def _run_until_terminated(config: Config, places: Places) -> None:
    task = asyncio.create_task(run(config, places))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="devicemount-plugin", description="Device plugin driven by configuration files."
    )
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument(
        "--config", type=Path, required=True, help="a YAML file, or a directory of *.yaml"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        help="where the node's /dev and /sys are found: their parent directory (default: /)",
    )
    return parser.parse_args()


def main() -> None:
    """Run the command `devicemount-plugin`."""
    arguments = _parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        config = read_config(arguments.config)
    except ConfigError as error:
        sys.exit(f"devicemount-plugin: {error}")
    places = Places(
        root=arguments.root,
        device_plugins=DEVICE_PLUGINS,
        reports=REPORTS,
        probe_port=PROBE_PORT,
    )
    asyncio.run(_run_until_terminated(config, places))


if __name__ == "__main__":
    main()
