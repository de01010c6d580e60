# SPDX-License-Identifier: Apache-2.0
"""Starts the device plugin: configuration, probes, then a server for each resource."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

from devicemount_plugin.config import Config, ConfigError, read_config
from devicemount_plugin.hotplug import keep_inventories
from devicemount_plugin.inventory import Inventory
from devicemount_plugin.probes import serve_probes
from devicemount_plugin.registration import Registration

DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
PROBE_PORT = 8080
ALL_ADDRESSES = ""


async def run(config: Config, *, root: Path, device_plugins: Path, probe_port: int) -> None:
    """Serve every resource of the configuration until cancelled."""
    inventories = [Inventory(resource, root=root) for resource in config.resources]
    registrations = [Registration(inventory, directory=device_plugins) for inventory in inventories]

    def not_registered() -> list[str]:
        return [one.resource_name for one in registrations if not one.is_current()]

    async with (
        serve_probes(host=ALL_ADDRESSES, port=probe_port, not_ready=not_registered),
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(keep_inventories(inventories))
        for registration in registrations:
            tasks.create_task(registration.keep())


async def _run_until_terminated(config: Config, *, root: Path) -> None:
    task = asyncio.create_task(
        run(config, root=root, device_plugins=DEVICE_PLUGINS, probe_port=PROBE_PORT)
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="devicemount-plugin", description="Device plugin driven by a configuration file."
    )
    parser.add_argument("--config", type=Path, required=True, help="the configuration file (YAML)")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        help="where the node's /dev is found: its parent directory (default: /)",
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
    asyncio.run(_run_until_terminated(config, root=arguments.root))


if __name__ == "__main__":
    main()
