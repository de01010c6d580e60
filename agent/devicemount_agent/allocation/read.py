# SPDX-License-Identifier: Apache-2.0
"""What was allocated to a shadow pod, and the proof that it was.

The checkpoint must name the shadow pod's UID (so its content is this pod's), and List must show the
mount's shadow pod name with the same ids (so the pod is active and the ids are its). Neither is
enough alone: ids alone do not join them, since entries of dead pods stay in the file. What the ids
are on this node is then asked of the sources that the resource's profile names (sources.py).
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from devicemount_agent.allocation.facts import Facts, ResourceFacts
from devicemount_agent.allocation.kubelet import Checkpoint, Entry, Listing, PodResources
from devicemount_agent.allocation.libraries import Libraries
from devicemount_agent.allocation.said import NAMED, Ask
from devicemount_agent.allocation.shown import HOLD
from devicemount_agent.allocation.sources import ReaderSources
from devicemount_agent.container.find import Container
from devicemount_agent.errors import AllocationUnknown, Insufficient, NodeUnavailable
from devicemount_agent.model import Concern, Device, DeviceID, PodUID, ResourceName
from devicemount_agent.questions import Unanswered
from devicemount_agent.requests import ShadowPod

PROOF_PAUSE_S = 0.005  # doubled each time
PROOF_PAUSE_LIMIT_S = 0.1
LAST_WORD_S = 0.1  # before the deadline of who waits, who would hear nothing else


@dataclass(frozen=True, slots=True)
class Choice:
    """The devices that the kubelet chose for a shadow pod."""

    entries: tuple[Entry, ...]

    def ids(self) -> Mapping[ResourceName, frozenset[DeviceID]]:
        return {entry.resource: entry.ids for entry in self.entries}


class Allocation:
    """Asks the kubelet's two sources, then those of the profile."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        pod_resources: PodResources,
        *,
        sources: ReaderSources,
        libraries: Libraries,
        facts: Facts,
    ) -> None:
        self._checkpoint = checkpoint
        self._pod_resources = pod_resources
        self._sources = sources
        self._libraries = libraries
        self._facts = facts

    async def chosen(self, uid: PodUID, asked: Mapping[ResourceName, int]) -> Choice:
        """Wait until the checkpoint names the shadow pod. Raises Insufficient, NodeUnavailable."""
        async for entries in self._checkpoint.versions():
            choice = choice_of(entries, uid, asked)
            if choice is not None:
                return choice
        raise AssertionError("the checkpoint's versions do not end")

    async def read(self, choice: Choice, ask: Ask) -> tuple[Device, ...]:
        """Return the devices with their nodes, and what else enters the container.

        May wait for the shadow pod's container, where only that tells. Raises AllocationUnknown,
        UnsupportedResource, EnvFileNeeded, NotAllowed, ReservationLost, NodeUnavailable.
        """
        return await self._sources.devices(choice.entries, ask)

    async def concerns(
        self, container: Container, devices: tuple[Device, ...]
    ) -> tuple[Concern, ...]:
        """Return what a target that has these devices lacks to use them.

        Raises NodeUnavailable where its file systems do not answer.
        """
        try:
            return await asyncio.to_thread(self._libraries.concerns, container, devices)
        except Unanswered as error:
            raise NodeUnavailable(f"the container's file systems: {error}") from error

    def about(self, resource: ResourceName) -> ResourceFacts:
        """Return what is known of a resource before anything of it is reserved."""
        return self._facts.about(resource)

    async def proven(
        self, shadow: ShadowPod, namespace: str, choice: Choice, *, deadline: float
    ) -> None:
        """Wait until List shows the choice under the shadow pod's name.

        The kubelet tells of no change: it is asked again, soon at first (it allows 100 a second).
        Where it shows the pod with other devices until just before the deadline (loop time), that
        does not heal: AllocationUnknown. Raises NodeUnavailable, TimeoutError.
        """
        pause_s = PROOF_PAUSE_S
        listing: Listing = {}
        try:
            async with asyncio.timeout_at(deadline - LAST_WORD_S):
                while True:
                    listing = await self._pod_resources.list()
                    if is_shown(listing, namespace, shadow.name, choice.ids()):
                        return
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, PROOF_PAUSE_LIMIT_S)
        except TimeoutError:
            check_listed(listing, namespace, shadow.name, choice.ids())
            raise

    async def holds(
        self, shadow: ShadowPod, namespace: str, ids: Mapping[ResourceName, frozenset[DeviceID]]
    ) -> bool:
        """Tell whether List shows these devices as the shadow pod's. Raises NodeUnavailable."""
        return is_shown(await self._pod_resources.list(), namespace, shadow.name, ids)

    async def still_holds(
        self, shadow: ShadowPod, namespace: str, ids: Mapping[ResourceName, frozenset[DeviceID]]
    ) -> bool:
        """Tell whether both sources say that the devices are the shadow pod's, without waiting."""
        given = {e.resource: e.ids for e in self._checkpoint.read() if _is_of(e, shadow.uid)}
        named = all(given.get(resource) == wanted for resource, wanted in ids.items())
        return named and await self.holds(shadow, namespace, ids)


def _is_of(entry: Entry, uid: PodUID) -> bool:
    return entry.pod_uid == uid and entry.container == HOLD


def entries_of(entries: Iterable[Entry], uid: PodUID) -> tuple[Entry, ...]:
    """Return what the checkpoint names for a shadow pod."""
    return tuple(entry for entry in entries if _is_of(entry, uid))


def choice_of(
    entries: Iterable[Entry], uid: PodUID, asked: Mapping[ResourceName, int]
) -> Choice | None:
    """Pick the shadow pod's entries; None while there are none.

    The kubelet writes all of a container's at once. Raises Insufficient unless there are as many
    devices as asked for.
    """
    given = {entry.resource: entry for entry in entries if _is_of(entry, uid)}
    if not given:
        return None
    for resource, count in asked.items():
        got = len(given[resource].ids) if resource in given else 0
        if got != count:
            raise Insufficient(f"{got} of {count} {resource}")
    return Choice(tuple(given[resource] for resource in sorted(asked)))


def is_shown(
    listing: Listing,
    namespace: str,
    name: str,
    ids: Mapping[ResourceName, frozenset[DeviceID]],
) -> bool:
    """Tell whether List shows exactly these ids in the shadow pod of that name."""
    given = listing.get((namespace, name), {}).get(HOLD, {})
    return all(given.get(resource, frozenset()) == wanted for resource, wanted in ids.items())


def check_listed(
    listing: Listing,
    namespace: str,
    name: str,
    ids: Mapping[ResourceName, frozenset[DeviceID]],
) -> None:
    """Raise AllocationUnknown where List shows the shadow pod, with other ids than these."""
    containers = listing.get((namespace, name), {})
    for resource, wanted in ids.items():
        given = containers.get(HOLD, {}).get(resource, frozenset())
        if containers and given != wanted:
            raise AllocationUnknown(
                f"{resource}: the kubelet's checkpoint gives {_listed(wanted)} to the shadow pod"
                f" {name}, and its PodResources API says {_listed(given)}"
            )


def _listed(ids: Iterable[DeviceID]) -> str:
    ids = sorted(ids)
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return (", ".join(ids[:NAMED]) or "nothing") + more


def other_with(
    listing: Listing, namespace: str, name: str, ids: Mapping[ResourceName, frozenset[DeviceID]]
) -> tuple[str, str] | None:
    """Return another pod (namespace, name) that List shows with one of these devices, or None."""
    for pod, containers in listing.items():
        if pod == (namespace, name):
            continue
        for given in containers.values():
            if any(given.get(resource, frozenset()) & wanted for resource, wanted in ids.items()):
                return pod
    return None
