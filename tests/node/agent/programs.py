# SPDX-License-Identifier: Apache-2.0
"""Device programs as a runtime would attach them."""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from devicemount_agent.kernel import bpf
from devicemount_agent.kernel.files import closing
from devicemount_agent.kernel.syscall import syscall
from devicemount_agent.model import DeviceNumber

PROG_ATTACH, LINK_CREATE = 8, 28
TYPES = {"b": 1, "c": 2}


def op(code: int, *, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


# What runtimes begin with.
LOADS = b"".join(
    (
        op(0x61, dst=2, src=1),  # r2 = access << 16 | type
        op(0xBC, dst=3, src=2),
        op(0x54, dst=2, imm=0xFFFF),  # w2 = type
        op(0x74, dst=3, imm=16),  # w3 = access
        op(0x61, dst=4, src=1, off=4),  # r4 = major
        op(0x61, dst=5, src=1, off=8),  # r5 = minor
    )
)


def allow_list(numbers: Iterable[DeviceNumber]) -> bytes:
    """Build what runc builds: the listed devices may be read and written, everything made."""
    code = [
        LOADS,
        op(0x55, dst=3, off=2, imm=1),  # mknod only: allow
        op(0xB7, dst=0, imm=1),
        op(0x95),
    ]
    for number in numbers:
        code += [
            op(0x55, dst=2, off=4, imm=TYPES[number.kind]),
            op(0x55, dst=4, off=3, imm=number.major),
            op(0x55, dst=5, off=2, imm=number.minor),
            op(0xB7, dst=0, imm=1),
            op(0x95),
        ]
    return b"".join([*code, op(0xB7, dst=0, imm=0), op(0x95)])


def allow_all() -> bytes:
    """Build what runc builds for a privileged container."""
    code = [
        op(0x61, dst=2, src=1),
        op(0x54, dst=2, imm=0xFFFF),
        op(0x61, dst=3, src=1),
        op(0x74, dst=3, imm=16),
        op(0x61, dst=4, src=1, off=4),
        op(0x61, dst=5, src=1, off=8),
        op(0xB4, dst=0, imm=1),
        op(0x95),
    ]
    return b"".join(code)


def calling() -> bytes:
    """Build a program that calls a helper (bpf_get_prandom_u32), then allows all."""
    return op(0x85, imm=7) + op(0xB7, dst=0, imm=1) + op(0x95)


def attach(cgroup: Path, instructions: bytes, *, name: str = "") -> int:
    """Attach a program next to those that are there; return its descriptor."""
    prog_fd = bpf.prog_load(instructions, is_gpl=False, name=name)
    attach_again(cgroup, prog_fd)
    return prog_fd


def attach_again(cgroup: Path, prog_fd: int) -> None:
    """Attach a loaded program next to those that are there."""
    _call(
        cgroup,
        PROG_ATTACH,
        lambda cgroup_fd: struct.pack(
            "<IIII", cgroup_fd, prog_fd, bpf.BPF_CGROUP_DEVICE, bpf.BPF_F_ALLOW_MULTI
        ),
    )


def detach(cgroup: Path, prog_fd: int) -> None:
    """Detach a program that its owner still has. Raises FileNotFoundError."""
    with closing(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)) as cgroup_fd:
        bpf.prog_detach(cgroup_fd, prog_fd)


def detach_all(cgroup: Path) -> None:
    for info in attached(cgroup):
        with closing(bpf.prog_get_fd_by_id(info.id)) as prog_fd:
            detach(cgroup, prog_fd)


def attach_alone(cgroup: Path, instructions: bytes, *, flags: int = 0) -> int:
    """Attach a program as the only one that this cgroup may have."""
    prog_fd = bpf.prog_load(instructions, is_gpl=False, name="")
    _call(
        cgroup,
        PROG_ATTACH,
        lambda cgroup_fd: struct.pack("<IIII", cgroup_fd, prog_fd, bpf.BPF_CGROUP_DEVICE, flags),
    )
    return prog_fd


def attach_by_link(cgroup: Path, instructions: bytes) -> int:
    """Attach a program by a bpf_link; it stays until the returned descriptor is closed."""
    with closing(bpf.prog_load(instructions, is_gpl=False, name="linked")) as prog_fd:
        return _call(
            cgroup,
            LINK_CREATE,
            lambda cgroup_fd: struct.pack("<IIII", prog_fd, cgroup_fd, bpf.BPF_CGROUP_DEVICE, 0),
        )


def damage_original(cgroup: Path) -> None:
    """Overwrite what our program on this cgroup keeps of the original."""
    (ours,) = attached(cgroup)
    for map_id in ours.map_ids:
        with closing(bpf.map_get_fd_by_id(map_id)) as map_fd:
            info = bpf.map_info(map_fd)
            if info.name == "dmount_original":
                bpf.map_update(map_fd, bytes(4), bytes(info.value_size_bytes))


def attached(cgroup: Path) -> tuple[bpf.ProgramInfo, ...]:
    with closing(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)) as cgroup_fd:
        found = []
        for program_id in bpf.prog_query(cgroup_fd).program_ids:
            with closing(bpf.prog_get_fd_by_id(program_id)) as prog_fd:
                found.append(bpf.prog_info(prog_fd))
    return tuple(found)


def _call(cgroup: Path, command: int, attr) -> int:
    with closing(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)) as cgroup_fd:
        buffer = ctypes.create_string_buffer(attr(cgroup_fd), 256)
        return syscall(bpf.SYS_BPF, command, buffer, 128, path="bpf")
