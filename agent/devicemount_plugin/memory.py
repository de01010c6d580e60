# SPDX-License-Identifier: Apache-2.0
"""Remembers which device has which id, for a plugin that starts while its devices are in use.

Discovery chooses between several ids of a device as it was chosen before: without this file a
restart would rename devices, and the kubelet would give them away a second time under their new
names. It lies in /run, so that a reboot, which ends every container too, begins anew. (The
kubelet's own directory of sockets is emptied by the kubelet.)
"""

import logging
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from devicemount_plugin.config import DeviceID, ResourceName
from devicemount_plugin.discovery import Device

MAX_BYTES = 64 << 20  # 16384 devices with their paths take a tenth
SHOWN = 200  # characters of what is wrong with a file
READABLE = 40  # characters of the resource, in the file's name

_log = logging.getLogger(__name__)
_devices = TypeAdapter(dict[DeviceID, Device])


class Memory:
    """One resource's file."""

    def __init__(self, directory: Path, resource_name: ResourceName) -> None:
        self._path = directory / _file_name(resource_name)
        self._written: Mapping[DeviceID, Device] | None = None
        self._last_error = ""

    def read(self) -> Mapping[DeviceID, Device]:
        """Return what was written last; nothing if that is damaged or nothing was."""
        try:
            with self._path.open("rb") as file:
                return _devices.validate_json(file.read(MAX_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            _log.warning("known devices not read file=%s: %s", self._path, str(error)[:SHOWN])
            return {}

    def write(self, devices: Mapping[DeviceID, Device]) -> None:
        """Let the file say this; what fails is logged once, and tried again with the next call."""
        if devices == self._written:
            return
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(_devices.dump_json(dict(devices)))
            new.replace(self._path)
        except OSError as error:
            if str(error) != self._last_error:
                _log.warning("known devices not written: %s", error)
            self._last_error = str(error)
            return
        self._written, self._last_error = dict(devices), ""


def _file_name(resource_name: ResourceName) -> str:
    readable = re.sub(r"[^A-Za-z0-9.-]", "_", resource_name)[:READABLE]
    return f"ids-{readable}-{sha256(resource_name.encode()).hexdigest()[:8]}.json"
