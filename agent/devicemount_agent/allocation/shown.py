# SPDX-License-Identifier: Apache-2.0
"""What a running shadow container shows: common to the readers of its bundle and of itself.

What every container has is not its allocation; neither is what the kubelet asked for (the device
plugin's answer is read where it stands) nor what a runtime keeps of its own.
"""

import asyncio
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Protocol

from devicemount_agent.allocation.grafted import check_number, named
from devicemount_agent.allocation.host import Found, Host
from devicemount_agent.allocation.said import Subject
from devicemount_agent.container.cri import ContainerFacts
from devicemount_agent.errors import AllocationUnknown
from devicemount_agent.model import Access, ContainerID, DeviceNode, DeviceNumber, PodUID

HOLD = "hold"  # the container of a shadow pod that has the devices
POLL_S = 0.02  # doubled each time; a container starts in some 300 ms
POLL_LIMIT_S = 0.5

STANDARD_NODES = frozenset(
    f"/dev/{name}"
    for name in ("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "fd")
)
_SHM = "/dev/shm"  # noqa: S108  # a place in containers
STANDARD_TREES = tuple(map(PurePosixPath, ("/dev/pts", _SHM, "/dev/mqueue", "/proc", "/sys")))
STANDARD_FILES = frozenset(
    {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log", "/"}
)


class Runtime(Protocol):
    """What is asked of the container runtime."""

    async def running(self, pod_uid: PodUID, name: str | None = None) -> ContainerID | None: ...

    async def container(self, container_id: ContainerID) -> ContainerFacts | None: ...


async def running_hold(runtime: Runtime, uid: PodUID) -> ContainerFacts:
    """Wait until the shadow pod's container runs.

    Raises NodeUnavailable, and AllocationUnknown for one that may open everything: it has all
    devices of the node, whichever were allocated to it.
    """
    pause_s = POLL_S
    while True:
        container_id = await runtime.running(uid, HOLD)
        facts = await runtime.container(container_id) if container_id else None
        if facts is not None and facts.is_running and facts.pid > 0 and facts.pod_uid == uid:
            if facts.runtime.allows_all:
                raise AllocationUnknown(
                    "the shadow pod's container is privileged, so it shows all devices of the node"
                    " and not those that it was given: leave pods with the label"
                    " devicemount.io/shadow out of what makes pods privileged"
                )
            return facts
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, POLL_LIMIT_S)


def is_standard_node(path: str) -> bool:
    return path in STANDARD_NODES or any(
        tree in PurePosixPath(path).parents for tree in STANDARD_TREES
    )


def is_asked(path: str, asked: Iterable[str]) -> bool:
    """Tell whether something in a container came by a mount that the kubelet asked for."""
    place = PurePosixPath(path)
    return not {str(place), *map(str, place.parents)}.isdisjoint(asked)


def is_vendors_mount(path: str, asked: Iterable[str]) -> bool:
    """Tell whether a mount in a container is neither every container's nor the kubelet's."""
    place = PurePosixPath(path)
    is_standard = path in STANDARD_FILES or any(
        place == tree or tree in place.parents for tree in STANDARD_TREES
    )
    return not is_standard and path not in set(asked)


def is_mountable(host: Host, subject: Subject, host_path: str) -> bool:
    """Tell whether what a runtime mounted is of the kind that we bring (not the node's own)."""
    return not subject.profile.why_not_mounted(host_path, host.moved)


def node_shown(host: Host, subject: Subject, path: str, number: DeviceNumber) -> DeviceNode | None:
    """Return a device that a shadow container has at a path, with its place on the node.

    None for one that is none of this resource's: the container may have others'. Raises
    AllocationUnknown where the node has no such device, NotAllowed.
    """
    vendor = subject.profile.pci_vendor
    if vendor is not None and _vendor_of(host, number) != vendor:
        return None
    check_number(number, path)
    place = _place_on_node(host, path, number)
    if not subject.profile.allows_node(place.path if place else path):
        return None
    if place is None:
        raise AllocationUnknown(f"{path} of the shadow pod is no device that the node has in /dev")
    access = Access.READ | Access.WRITE
    return DeviceNode(path, place.path, number, access, uid=place.uid, gid=place.gid)


def _place_on_node(host: Host, path: str, number: DeviceNumber) -> Found | None:
    candidates = [path, *_names_by_sysfs(host, number)]
    for candidate in candidates:
        if host.exists(candidate):
            with named():
                found = host.find(candidate)
            if found.number() == number:
                return found
    return None


def _names_by_sysfs(host: Host, number: DeviceNumber) -> list[str]:
    """Return how devtmpfs calls a device: containers have some under another name."""
    uevent = f"{_sysfs(number)}/uevent"
    if not host.exists(uevent):
        return []
    lines = host.text(uevent).splitlines()
    return [f"/dev/{x.removeprefix('DEVNAME=')}" for x in lines if x.startswith("DEVNAME=")]


def _vendor_of(host: Host, number: DeviceNumber) -> str | None:
    """Return the PCI vendor of the hardware behind a device, None where it is none of PCI."""
    with named():
        device = f"{_sysfs(number)}/device"
        if not host.exists(device):
            return None
        place = PurePosixPath(host.find(device).path)
        for directory in (place, *place.parents):
            if directory == PurePosixPath("/sys"):
                break
            if host.exists(f"{directory}/vendor"):
                return host.text(f"{directory}/vendor").strip()
    return None


def _sysfs(number: DeviceNumber) -> str:
    kind = "char" if number.kind == "c" else "block"
    return f"/sys/dev/{kind}/{number.major}:{number.minor}"
