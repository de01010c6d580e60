# SPDX-License-Identifier: Apache-2.0
"""The devices of one resource as the kubelet is told of them, and who waits for a change.

A device that was offered once stays in the list, unhealthy while something is wrong with it: the
kubelet's capacity then says what the node has, and the same id comes back when the device does.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from devicemount_plugin.config import DeviceID, Resource, ResourceName
from devicemount_plugin.discovery import Device, discover
from devicemount_plugin.health import Fault, FaultKind, Health, faults_of, gone
from devicemount_plugin.memory import Memory

REPLICA_SEPARATOR = "::"
MAX_IDS = 16384  # of a resource: the kubelet takes a list of 4 MiB
MAX_TOLD = 4  # absences that one sentence names
MAX_TOLD_LENGTH = 128  # of each, with a path perhaps: the agent reads 64 KiB of all resources'

_log = logging.getLogger(__name__)

Listing = Mapping[DeviceID, Health]


@dataclass(frozen=True, slots=True)
class State:
    """A device and what is wrong with it."""

    device: Device
    faults: tuple[Fault, ...]

    @property
    def health(self) -> Health:
        return Health.UNHEALTHY if self.faults else Health.HEALTHY

    def absences(self) -> list[str]:
        return [fault.text for fault in self.faults if fault.kind is FaultKind.ABSENCE]


class Inventory:
    """All devices of a resource that were seen since the first look."""

    def __init__(self, resource: Resource, *, root: Path, reports: Path) -> None:
        self.resource = resource
        self._root = root
        self._states: Mapping[DeviceID, State] = {}  # whatever was found
        self._offered: frozenset[DeviceID] = frozenset()  # what the kubelet was told of
        self._left_out: frozenset[DeviceID] = frozenset()  # for want of room
        self._listing: Listing = {}
        self._memory = Memory(reports, self.resource_name)
        self._known = self._memory.read()  # what was ever offered, by this process or one before
        self._changed = asyncio.Event()
        self._has_looked = False
        self._missing = ""
        self._rescanning = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1)  # of its own: one that hangs takes none from others

    @property
    def resource_name(self) -> ResourceName:
        return ResourceName(self.resource.name)

    @property
    def listing(self) -> Listing:
        return self._listing

    @property
    def lacking(self) -> int:
        """How many devices the machine is not prepared for; one where any is expected in vain."""
        absent = sum(bool(state.absences()) for state in self._states.values())
        return absent or int(bool(self.missing))

    @property
    def missing(self) -> str:
        """Say what the node lacks where no device can be given away; empty: nothing."""
        if any(state.health is Health.HEALTHY for state in self._states.values()):
            return ""
        absences = [text for state in self._states.values() for text in state.absences()]
        if not self._states and self._has_looked and self.resource.expected:
            absences = [f"no device of {self.resource_name} is there, and the plugin expects one"]
        told = list(dict.fromkeys(absences))
        more = f" and {len(told) - MAX_TOLD} more" if len(told) > MAX_TOLD else ""
        return "; ".join(one[:MAX_TOLD_LENGTH] for one in told[:MAX_TOLD]) + more

    def rescan(self) -> Listing:
        """Look at the node anew, wake who waits if anything changed, return the new listing."""
        self._take(self._scan())
        return self._listing

    async def refresh(self) -> Listing:
        """Do what `rescan` does without holding up the others where a driver answers slowly."""
        async with self._rescanning:
            try:
                loop = asyncio.get_running_loop()
                self._take(await loop.run_in_executor(self._thread, self._scan))
            except OSError as error:  # a directory went while it was read: the next look tells
                _log.warning("rescan failed resource=%s: %s", self.resource_name, error)
            return self._listing

    def find(self, device_id: DeviceID) -> State | None:
        """Return the device of an id, with a replica's number or without, that was offered."""
        if device_id not in self._listing:
            return None
        return self._states[self.device_of(device_id)]

    def device_of(self, device_id: DeviceID) -> DeviceID:
        """Return the id of the device that an id, of a replica perhaps, stands for."""
        return DeviceID(device_id.partition(REPLICA_SEPARATOR)[0])

    def numa_node_of(self, device_id: DeviceID) -> int | None:
        state = self._states.get(self.device_of(device_id))
        return None if state is None else state.device.numa_node

    async def listings(self) -> AsyncIterator[Listing]:
        """Yield the present listing, then each one that differs from the last."""
        while True:
            changed, listing = self._changed, self._listing
            yield listing
            await changed.wait()

    def _scan(self) -> Mapping[DeviceID, State]:
        """Read the file system, and change nothing here."""
        found = discover(self.resource, root=self._root, known=self._known)
        states = {
            device.id: State(device, faults_of(device, self.resource, root=self._root))
            for device in found.values()
        }
        for device_id in self._offered - states.keys():
            device = replace(self._states[device_id].device, number=None)
            states[device_id] = State(device, (gone(device),))
        return states

    def _take(self, states: Mapping[DeviceID, State]) -> None:
        complete = {one.device.id for one in states.values() if not one.absences()}
        new = sorted(complete - self._offered)
        room = MAX_IDS // self.resource.replicas - len(self._offered)
        offered = self._offered.union(new[:room])
        self._log_changes(states)
        self._log_left_out(frozenset(new[room:]))
        self._states, self._offered, self._has_looked = states, offered, True
        self._log_missing()
        self._remember()  # before the kubelet is told
        listing = {
            device_id: state.health
            for state in states.values()
            if state.device.id in offered
            for device_id in _ids(state.device.id, replicas=self.resource.replicas)
        }
        if listing != self._listing:
            self._listing = listing
            self._changed.set()
            self._changed = asyncio.Event()

    def _remember(self) -> None:
        """Keep what names the devices, with the numbers of those only that are there."""
        ids = dict.fromkeys((*self._offered, *self._known))
        self._known = {one: self._last_seen(one) for one in islice(ids, MAX_IDS)}
        self._memory.write(self._known)

    def _last_seen(self, device_id: DeviceID) -> Device:
        if (state := self._states.get(device_id)) is not None:
            return state.device
        device = self._known[device_id]
        return device if device.number is None else replace(device, number=None)

    def _log_missing(self) -> None:
        """Say once what no device's own change says: that none is there."""
        missing = "" if self._states else self.missing
        if missing and missing != self._missing:
            _log.warning("devices missing resource=%s: %s", self.resource_name, missing)
        self._missing = missing

    def _log_changes(self, states: Mapping[DeviceID, State]) -> None:
        for device_id, state in states.items():
            before = self._states.get(device_id)
            if before is not None and before.faults == state.faults:
                continue
            _log.log(
                logging.WARNING if state.faults else logging.INFO,
                "device changed resource=%s device=%s health=%s%s",
                self.resource_name,
                device_id,
                state.health.value,
                "".join(f": {fault.text}" for fault in state.faults),
            )

    def _log_left_out(self, left_out: frozenset[DeviceID]) -> None:
        if left_out != self._left_out:
            _log.error(
                "devices left out resource=%s count=%d: more than %d ids",
                self.resource_name,
                len(left_out),
                MAX_IDS,
            )
        self._left_out = left_out


def _ids(device_id: DeviceID, *, replicas: int) -> Iterable[DeviceID]:
    if replicas == 1:
        return (device_id,)
    return (DeviceID(f"{device_id}{REPLICA_SEPARATOR}{number}") for number in range(replicas))
