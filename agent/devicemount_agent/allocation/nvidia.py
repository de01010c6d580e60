# SPDX-License-Identifier: Apache-2.0
"""Resolver `nvidiaProc`: NVIDIA's names of GPUs and MIG instances to nodes, by the driver's /proc.

Sources: nvidia-container-toolkit internal/{info/proc,nvcaps,platform-support/dgpu}: what its
runtime does with the same names. An index counts GPUs in the order of PCI addresses; it
is not the minor. A new MIG id (MIG-<uuid>) says nothing about its GPU and instances: only NVML
knows, which is asked here where there is one (`instances`).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Protocol, TypeAlias

from devicemount_agent.allocation.grafted import named, node_of
from devicemount_agent.allocation.hooks import nvidia_params
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.resolver import Resolved
from devicemount_agent.allocation.said import Subject
from devicemount_agent.errors import AllocationUnknown, NotAllowed
from devicemount_agent.graft.numbers import character_drivers
from devicemount_agent.model import Access, DeviceNode, DeviceNumber, Edits, Link
from devicemount_agent.profiles.profile import Named

VISIBLE = "NVIDIA_VISIBLE_DEVICES"
IMEX = "NVIDIA_IMEX_CHANNELS"
MARKERS = "/var/run/nvidia-container-devices"  # mounts below it are names, not files
GPUS = "/proc/driver/nvidia/gpus"
MINORS = "/proc/driver/nvidia-caps/mig-minors"
CAPABILITY_MODE = 0o444
DRIVER_ROOTS = ("", "/run/nvidia/driver")  # where the driver is installed, or its container
CONTROL = ("nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools")
BESIDE = {  # variable: directory in /dev, names in it
    "NVIDIA_GDRCOPY": ("", "gdrdrv"),
    "NVIDIA_GDS": ("", r"nvidia-fs[0-9]+"),
    "NVIDIA_MOFED": ("infiniband/", r"uverbs[0-9]+|rdma_cm"),
}
RW = Access.READ | Access.WRITE

_NUMBER = re.compile(r"[0-9]{1,9}")
_OF_A_DEVICE = {  # nodes, and how many of them one device has: a MIG device two capabilities
    r".*/dev/nvidia[0-9]+": 1,
    r".*/dev/nvidia-caps/nvidia-cap[0-9]+": 2,
    r".*/dev/dri/card[0-9]+": 1,
    r".*/dev/dri/renderD[0-9]+": 1,
}
_MIG_BY_INDEX = re.compile(r"[0-9]{1,9}:[0-9]{1,9}")  # GPU:MIG device of it
_OLD_MIG = re.compile(r"MIG-(GPU-[0-9a-fA-F-]+)/([0-9]+)/([0-9]+)")


@dataclass(frozen=True, slots=True)
class Gpu:
    bus: str  # 0000:17:00.0
    uuid: str
    minor: int
    is_excluded: bool


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG device: a compute instance in a GPU instance."""

    gpu_uuid: str
    gpu_instance: int
    compute_instance: int


class MigDevice(Protocol):
    """What NVML says of a new MIG id."""

    @property
    def gpu_uuid(self) -> str: ...

    @property
    def gpu_instance(self) -> int: ...

    @property
    def compute_instance(self) -> int: ...


Instances: TypeAlias = Callable[[str], MigDevice | None]


def nobody_knows(_: str) -> MigDevice | None:
    """Stand where there is no NVML."""
    return None


class NvidiaProc:
    """The driver of this node."""

    def __init__(self, host: Host, *, instances: Instances = nobody_knows) -> None:
        self._host = host
        self._instances = instances

    def names(self, subject: Subject, by: Named) -> tuple[str, ...]:
        if by == "ids":
            return tuple(sorted(subject.ids))
        value = subject.answer.envs.get(VISIBLE, "")
        if value == MARKERS:
            prefix = f"{MARKERS}/"
            markers = (m.container_path for m in subject.answer.mounts)
            names = (m.removeprefix(prefix) for m in markers if m.startswith(prefix))
            return tuple(name for name in names if not name.startswith("imex/"))
        if value in {"", "none", "void"}:  # told to show no GPU: the ids still say which it has
            return ()
        if value == "all":
            raise AllocationUnknown(f"{VISIBLE}=all is no answer of NVIDIA's device plugin")
        return tuple(value.split(","))

    def resolve(self, subject: Subject, names: Iterable[str]) -> Resolved:
        gpus = self._gpus()
        own: list[DeviceNode] = []
        shared: list[DeviceNode] = []
        links: list[Link] = []
        for name in dict.fromkeys(name.partition("::")[0] for name in names):
            instance = self._instance(name)
            if instance is not None:
                gpu = _gpu_of(instance.gpu_uuid, gpus)
                own += (self._node(subject, f"nvidia{gpu.minor}"),)
                own += self._capabilities(subject, gpu, instance)
            else:
                gpu = _gpu_of(name, gpus)
                own.append(self._node(subject, f"nvidia{gpu.minor}"))
                drawing = tuple(self._drawing(subject, gpu))
                shared += drawing
                links += self._by_path(gpu, drawing)
        shared += self._channels(subject)
        shared += self._beside(subject)
        shared += (self._node(subject, name) for name in CONTROL if self._place(name) is not None)
        edits = Edits(links=tuple(links))
        return Resolved(tuple(dict.fromkeys(own)), tuple(dict.fromkeys(shared)), edits)

    def always(self) -> Edits:
        return Edits(overlaid=nvidia_params(self._host))

    def count(self, nodes: Iterable[DeviceNode]) -> int:
        places = {node.host_path for node in nodes}
        return max(
            ceil(sum(re.fullmatch(pattern, place) is not None for place in places) / each)
            for pattern, each in _OF_A_DEVICE.items()
        )

    # ---- what /proc says

    def _gpus(self) -> list[Gpu]:
        """Return the GPUs in the order of their indexes."""
        gpus = [self._gpu(name) for name in self._host.names(GPUS)]
        if not gpus:
            raise AllocationUnknown(f"no NVIDIA driver on this node: nothing in {GPUS}")
        return sorted(gpus, key=lambda gpu: gpu.bus)

    def _gpu(self, directory: str) -> Gpu:
        with named():
            text = self._host.text(f"{GPUS}/{directory}/information")
        facts = {
            key.strip(): value.strip()
            for key, _, value in (text_line.partition(":") for text_line in text.splitlines())
        }
        try:
            return Gpu(
                bus=_bus(facts.get("Bus Location", directory)),
                uuid=facts["GPU UUID"],
                minor=int(facts["Device Minor"]),
                is_excluded=facts.get("GPU Excluded") == "Yes",
            )
        except (KeyError, ValueError) as error:
            raise AllocationUnknown(f"{GPUS}/{directory}/information: {error!r}") from error

    def _instance(self, name: str) -> MigDevice | None:
        """Return what a MIG id names, None if it is none."""
        if not name.startswith("MIG-"):
            return None
        if old := _OLD_MIG.fullmatch(name):
            return Instance(old[1], int(old[2]), int(old[3]))
        instance = self._instances(name)
        if instance is None:
            raise AllocationUnknown(
                f"{name} cannot be resolved from /proc: it names neither GPU nor instance; let"
                " NVIDIA's device plugin answer with CDI (DEVICE_LIST_STRATEGY=cdi-cri) or device"
                " nodes (PASS_DEVICE_SPECS=true), or give the shadow pod its runtime class"
            )
        return instance

    def _capabilities(
        self, subject: Subject, gpu: Gpu, instance: MigDevice
    ) -> tuple[DeviceNode, DeviceNode]:
        gi = f"gpu{gpu.minor}/gi{instance.gpu_instance}"
        both = (f"{gi}/access", f"{gi}/ci{instance.compute_instance}/access")
        with named():
            lines = (x.split(" ") for x in self._host.text(MINORS).splitlines())
        minors = {fields[0]: fields[1] for fields in lines if len(fields) == 2}  # noqa: PLR2004
        one, other = (self._capability(subject, access, minors) for access in both)
        return one, other

    def _capability(self, subject: Subject, access: str, minors: dict[str, str]) -> DeviceNode:
        minor = minors.get(access, "")
        if not _NUMBER.fullmatch(minor):
            raise AllocationUnknown(f"no line {access} in {MINORS}")
        name = f"nvidia-caps/nvidia-cap{minor}"
        if self._place(name) is not None:
            return self._node(subject, name)
        path = f"/dev/{name}"  # nobody has made it yet: its number is known without it
        if not subject.profile.allows_node(path):
            raise NotAllowed(f"{path} is outside of profile {subject.profile.name}")
        number = DeviceNumber("c", self._major("nvidia-caps"), int(minor))
        return DeviceNode(path, path, number, RW, mode=CAPABILITY_MODE, uid=0, gid=0)

    def _major(self, driver: str) -> int:
        with named():
            drivers = character_drivers(self._host.text("/proc/devices"))
        for major, name in drivers:
            if name == driver:
                return major
        raise AllocationUnknown(f"/proc/devices has no {driver}")

    # ---- nodes

    def _place(self, name: str) -> str | None:
        """Return where a node of the driver is on the node."""
        places = (f"{root}/dev/{name}" for root in DRIVER_ROOTS)
        return next((place for place in places if self._host.exists(place)), None)

    def _node(self, subject: Subject, name: str) -> DeviceNode:
        place = self._place(name)
        if place is None:
            raise AllocationUnknown(f"/dev/{name} does not exist on the node")
        with named():
            found = self._host.find(place)
        node = node_of(subject.profile, found, path=f"/dev/{name}", access=RW)
        return replace(node, uid=None, gid=node.gid or None)  # as NVIDIA's CDI specs have it

    def _drawing(self, subject: Subject, gpu: Gpu) -> Iterator[DeviceNode]:
        """Yield the GPU's DRM nodes, where the node has them."""
        for name in self._host.names(f"/sys/bus/pci/devices/{gpu.bus}/drm"):
            if (
                re.fullmatch(r"(card|renderD)[0-9]+", name)
                and self._place(f"dri/{name}") is not None
            ):
                yield self._node(subject, f"dri/{name}")

    def _by_path(self, gpu: Gpu, drawing: Iterable[DeviceNode]) -> Iterator[Link]:
        names = {node.path.rpartition("/")[2] for node in drawing}
        for kind in ("card", "render"):
            path = f"/dev/dri/by-path/pci-{gpu.bus}-{kind}"
            target = self._host.link(path)
            if target is not None and target.rpartition("/")[2] in names:
                yield Link(path, target)

    def _channels(self, subject: Subject) -> Iterator[DeviceNode]:
        """Yield the IMEX channels: by variable, or by marker mounts."""
        prefix = f"{MARKERS}/imex/"
        markers = (m.container_path for m in subject.answer.mounts)
        channels = [m.removeprefix(prefix) for m in markers if m.startswith(prefix)]
        channels += (x for x in subject.answer.envs.get(IMEX, "").split(",") if x)
        for channel in dict.fromkeys(channels):
            if not _NUMBER.fullmatch(channel):
                raise AllocationUnknown(f"IMEX channel {channel[:80]!r} is no number")
            yield self._node(subject, f"nvidia-caps-imex-channels/channel{channel}")

    def _beside(self, subject: Subject) -> Iterator[DeviceNode]:
        """Yield the nodes of other drivers that variables ask for, where the node has them."""
        for variable, (directory, pattern) in BESIDE.items():
            if subject.answer.envs.get(variable) != "enabled":
                continue
            for name in self._host.names(f"/dev/{directory}"):
                if re.fullmatch(pattern, name):
                    yield self._node(subject, f"{directory}{name}")


def _bus(text: str) -> str:
    """Return a PCI address as sysfs has it: NVML writes eight digits of domain, in capitals."""
    domain, _, rest = text.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def _gpu_of(name: str, gpus: list[Gpu]) -> Gpu:
    if _NUMBER.fullmatch(name):
        usable = [gpu for gpu in gpus if not gpu.is_excluded]
        if int(name) < len(usable):
            return usable[int(name)]
        raise AllocationUnknown(f"there is no GPU with index {name} on this node")
    if _MIG_BY_INDEX.fullmatch(name):
        raise AllocationUnknown(
            f"{name} names a MIG device by its place on its GPU, which /proc does not tell: let the"
            " device plugin name it by its id (MIG-...), by CDI or by device nodes"
        )
    for gpu in gpus:
        if gpu.uuid.lower() == name.lower():
            return gpu
    unready = [gpu.bus for gpu in gpus if "?" in gpu.uuid]
    why = f"; {', '.join(unready)} is not initialised and says no UUID" if unready else ""
    raise AllocationUnknown(f"no such GPU on this node: {name[:80]}{why}")
