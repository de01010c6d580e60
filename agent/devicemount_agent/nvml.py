# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's management library says of this node: who uses a GPU, and what a MIG id means.

It only adds: where there is no driver, or it does not answer in time (a GPU that fell off the bus
can hang it for ever), everything goes on without it. The library is the node's own, of the driver's
very version, and is let go after each question: it holds the devices open as long as it is
initialised, and would keep a driver from being upgraded.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from devicemount_agent.graft.numbers import character_drivers
from devicemount_agent.kernel.libraries import dlopen
from devicemount_agent.logs import line
from devicemount_agent.model import DeviceNumber, NodeType
from devicemount_agent.questions import Questions, StillUnanswered, Unanswered

DRIVER = "proc/driver/nvidia"
LIBRARY = "libnvidia-ml.so.1"
DIRECTORIES = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "run/nvidia/driver/usr/lib/x86_64-linux-gnu",  # the GPU operator's driver container
    "run/nvidia/driver/usr/lib64",
)
DRIVER_NAMES = ("nvidia", "nvidia-frontend")  # of its character major in /proc/devices
CONTROL_MINORS = 254  # nvidia-modeset, nvidiactl
ANSWER_S = 2.0  # without persistence mode the driver wakes the GPUs up first

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class MigDevice:
    """A compute instance in a GPU instance of a GPU."""

    gpu_uuid: str
    gpu_instance: int
    compute_instance: int


class Nvml:
    """The library of the node whose root directory is given."""

    def __init__(self, node_root: Path) -> None:
        self._root = node_root
        self._questions = Questions(wait_s=ANSWER_S)
        self._is_loaded = False

    def users(self, numbers: Collection[DeviceNumber]) -> Mapping[int, frozenset[DeviceNumber]]:
        """Return the processes that use these GPUs, by their pid on the node.

        Nobody where none of the numbers is a GPU's or the library is silent.
        """
        gpus = {number.minor: number for number in numbers if self._is_gpu(number)}
        if not gpus:
            return {}
        said = self._asked(_users) or {}
        users = {
            pid: frozenset(gpus[m] for m in minors & gpus.keys()) for pid, minors in said.items()
        }
        return {pid: used for pid, used in users.items() if used}

    def mig_device(self, uuid: str) -> MigDevice | None:
        """Return what MIG-<uuid> is; None if it is not known."""
        return self._asked(lambda: _mig_device(uuid))

    def _is_gpu(self, number: DeviceNumber) -> bool:
        if number.node_type is not NodeType.CHAR or number.minor >= CONTROL_MINORS:
            return False
        try:
            drivers = character_drivers((self._root / "proc/devices").read_text())
        except FileNotFoundError:
            return False
        return any((number.major, name) in drivers for name in DRIVER_NAMES)

    def _asked(self, question: Callable[[], _Answer]) -> _Answer | None:
        if not (self._root / DRIVER).is_dir():
            return None
        pynvml = _bindings()
        try:
            return self._questions.ask(LIBRARY, lambda: self._initialised(question))
        except StillUnanswered:
            return None
        except (Unanswered, pynvml.NVMLError, OSError) as error:
            log.warning(line("NVML did not answer", error=error))
            return None

    def _initialised(self, question: Callable[[], _Answer]) -> _Answer:
        self._load()
        pynvml = _bindings()
        pynvml.nvmlInit()
        try:
            return question()
        finally:
            pynvml.nvmlShutdown()

    def _load(self) -> None:
        """Load the node's library: pynvml then finds it by its soname. Raises OSError."""
        if self._is_loaded:
            return
        places = (self._root / directory / LIBRARY for directory in DIRECTORIES)
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise OSError(f"{LIBRARY} is in none of {', '.join(DIRECTORIES)} of the node")
        dlopen(found)
        self._is_loaded = True


def _bindings() -> ModuleType:
    """Import what a node without a driver does without: it costs 1.3 MiB."""
    import pynvml  # noqa: PLC0415

    return pynvml


def _users() -> dict[int, frozenset[int]]:
    pynvml = _bindings()
    users: dict[int, frozenset[int]] = {}
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            minor, pids = _users_of(index)
        except pynvml.NVMLError as error:  # lost, or in reset: it hides nobody of the others
            log.warning(line("NVML did not answer for a GPU", index=index, error=error))
            continue
        for pid in pids:
            users[pid] = users.get(pid, frozenset()) | {minor}
    return users


def _users_of(index: int) -> tuple[int, frozenset[int]]:
    """Return a GPU's minor and who computes or draws on it."""
    pynvml = _bindings()
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    processes = (
        *pynvml.nvmlDeviceGetComputeRunningProcesses(device),
        *pynvml.nvmlDeviceGetGraphicsRunningProcesses(device),
    )
    minor: int = pynvml.nvmlDeviceGetMinorNumber(device)
    return minor, frozenset(process.pid for process in processes)


def _mig_device(uuid: str) -> MigDevice:
    pynvml = _bindings()
    device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    gpu = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
    return MigDevice(
        gpu_uuid=pynvml.nvmlDeviceGetUUID(gpu),
        gpu_instance=pynvml.nvmlDeviceGetGpuInstanceId(device),
        compute_instance=pynvml.nvmlDeviceGetComputeInstanceId(device),
    )
