# SPDX-License-Identifier: Apache-2.0
"""Cgroups of our own with a device filter, on both hierarchies; the others are left alone."""

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SYS_bpf = 321
BPF_PROG_LOAD, BPF_PROG_ATTACH = 5, 8
BPF_PROG_TYPE_CGROUP_DEVICE, BPF_CGROUP_DEVICE = 15, 6
BPF_DEVCG_ACC_READ = 2


@dataclass(frozen=True, slots=True)
class Tree:
    """One hierarchy and how a cgroup of it is told to allow nothing but reading one device."""

    root: Path
    allow_only_reading: Callable[[Path, Path], None]

    @contextmanager
    def cgroup(self, name: str) -> Iterator[Path]:
        path = self.root / f"{name}-{os.getpid()}"
        path.mkdir()
        try:
            yield path
        finally:
            path.rmdir()


def cgroup_trees() -> dict[str, Tree]:
    """Return this machine's hierarchies that filter devices, by version."""
    trees = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        root, (kind, _, options) = Path(fields.split()[4]), rest.split(" ", 2)
        if kind == "cgroup2":
            trees.setdefault("v2", Tree(root, _filter_v2))
        elif kind == "cgroup" and "devices" in options.split(","):
            trees.setdefault("v1", Tree(root, _filter_v1))
    return trees


def _filter_v1(cgroup: Path, node: Path) -> None:
    number = node.stat().st_rdev
    (cgroup / "devices.deny").write_text("a")
    (cgroup / "devices.allow").write_text(f"c {os.major(number)}:{os.minor(number)} r")


def _filter_v2(cgroup: Path, node: Path) -> None:
    """Attach a program that answers 1 for reading this minor of this major, else 0."""
    number = node.stat().st_rdev
    program = _load(
        _instruction(0x61, dst=2, src=1, off=0),  # r2 = context->access_type
        _instruction(0x77, dst=2, imm=16),  # r2 >>= 16: what is asked
        _instruction(0x61, dst=3, src=1, off=4),  # r3 = context->major
        _instruction(0x61, dst=4, src=1, off=8),  # r4 = context->minor
        _instruction(0xB7, dst=0, imm=0),  # r0 = 0
        _instruction(0x55, dst=2, off=3, imm=BPF_DEVCG_ACC_READ),  # if r2 != read: exit
        _instruction(0x55, dst=3, off=2, imm=os.major(number)),
        _instruction(0x55, dst=4, off=1, imm=os.minor(number)),
        _instruction(0xB7, dst=0, imm=1),  # r0 = 1
        _instruction(0x95),  # exit
    )
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _bpf(BPF_PROG_ATTACH, struct.pack("IIII", directory, program, BPF_CGROUP_DEVICE, 0))
    finally:
        os.close(directory)
        os.close(program)  # attached: the cgroup keeps it


def _instruction(code: int, *, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


def _load(*instructions: bytes) -> int:
    code = ctypes.create_string_buffer(b"".join(instructions))
    text = ctypes.create_string_buffer(b"Apache-2.0")
    return _bpf(
        BPF_PROG_LOAD,
        struct.pack(
            "IIQQ",
            BPF_PROG_TYPE_CGROUP_DEVICE,
            len(instructions),
            ctypes.addressof(code),
            ctypes.addressof(text),
        ),
    )


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = ctypes.CDLL(None, use_errno=True).syscall(SYS_bpf, command, buffer, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"bpf {command}")
    return int(result)
