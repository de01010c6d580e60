# SPDX-License-Identifier: Apache-2.0
"""A program that has the GPU fill memory and reads it back, in whatever container."""

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from node.agent.containers import Box

PROGRAM = """
import ctypes, itertools, sys
cuda = ctypes.CDLL("libcuda.so.1")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
size = ctypes.c_size_t(64)
def must(error):
    if error:
        sys.exit(f"CUDA error {error}")
must(cuda.cuInit(0))
must(cuda.cuDeviceGet(ctypes.byref(device), 0))
must(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
must(cuda.cuCtxSetCurrent(context))
must(cuda.cuMemAlloc_v2(ctypes.byref(memory), size))
for value in itertools.count(1):
    read = ctypes.create_string_buffer(size.value)
    must(cuda.cuMemsetD8_v2(memory, ctypes.c_ubyte(value % 256), size))
    must(cuda.cuMemcpyDtoH_v2(read, memory, size))
    if set(read.raw) != {value % 256}:
        sys.exit("the GPU's memory holds something else")
    print("computes", flush=True)
    if not sys.stdin.readline():
        break
"""
ASKING = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
print(cuda.cuInit(0), flush=True)
sys.stdin.readline()
print(cuda.cuInit(0))
"""
JOIN = 'echo $$ >"$0" && exec "$@"'

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Computing:
    """A process with a CUDA context."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def once_more(self) -> None:
        """Compute again. AssertionError with its last words if it cannot."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.check()

    def check(self) -> None:
        assert self.process.stdout and self.process.stderr
        if self.process.stdout.readline().strip() != "computes":
            raise AssertionError(self.process.stderr.read())


@contextmanager
def computing(*inside: str) -> Iterator[Computing]:
    """Run a process that computes; AssertionError with its last words if it cannot."""
    with subprocess.Popen(
        [*inside, sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        one = Computing(process)
        try:
            one.check()
            yield one
        finally:
            process.communicate()


def cuda_error(*inside: str) -> int:
    """Return what CUDA answers in place of a context; AssertionError if it gives one."""
    try:
        with computing(*inside):
            pass
    except AssertionError as error:
        refused = re.search(r"CUDA error ([0-9]+)", str(error))
        if refused is None:
            raise
        log.info("refused by CUDA with error %s", refused[1])
        return int(refused[1])
    raise AssertionError("it computes")


@dataclass(frozen=True)
class Asking:
    """A process that asks CUDA for devices twice."""

    process: subprocess.Popen[str]
    first: int  # what CUDA answered

    def once_more(self) -> int:
        return int(self.process.communicate("\n")[0])


@contextmanager
def asking(*inside: str) -> Iterator[Asking]:
    """Run one that has asked once."""
    with subprocess.Popen(
        [*inside, sys.executable, "-c", ASKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        yield Asking(process, int(process.stdout.readline()))


def below(box: Box) -> tuple[str, ...]:
    """Run in the container's cgroup, with this machine's files."""
    return ("sh", "-c", JOIN, str(box.cgroup.path / "cgroup.procs"))
