# SPDX-License-Identifier: Apache-2.0
"""bpf(2), as much of it as device programs of cgroups need.

Needs CAP_SYS_ADMIN and Linux 5.6 (BPF_F_REPLACE). Every attribute goes into a zeroed buffer larger
than any union bpf_attr: kernels 6.17 to 7.1 write query.revision at offset 56 whatever size they
were told.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from devicemount_agent.kernel.syscall import Buffer, made, number, prepared, syscall

SYS_BPF = number(x86_64=321, aarch64=280)

BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6  # attach type
BPF_MAP_TYPE_HASH = 1
BPF_MAP_TYPE_ARRAY = 2
BPF_F_ALLOW_OVERRIDE = 1
BPF_F_ALLOW_MULTI = 2
BPF_F_REPLACE = 4
BPF_F_NO_PREALLOC = 1
BPF_F_QUERY_EFFECTIVE = 1

MAX_PROGRAMS = 64  # the kernel's own limit per cgroup and attach type
MAX_EFFECTIVE = 256  # of a cgroup and all above it: a few at each level
_ATTR_BUFFER_BYTES = 256
_ATTR_SIZE_BYTES = 128
_NAME_BYTES = 16
_PROG_INFO_BYTES = 232
_MAP_INFO_BYTES = 88
_LOG_BYTES = 65536
_QUERY = struct.Struct("<IIIIQI")  # target, attach type, how, its flags (out), ids, their count
_COUNT = struct.Struct("<I")
_COUNT_OFFSET = 24  # of query.prog_cnt: room on the way in, programs on the way out
_LOAD_ATTEMPTS = 30  # EAGAIN: the verifier was interrupted by a signal


class Command(IntEnum):
    """What bpf(2) is asked to do."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    PROG_ATTACH = 8
    PROG_DETACH = 9
    PROG_GET_NEXT_ID = 11
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16


@dataclass(frozen=True, slots=True)
class Query:
    """Which device programs are attached to one cgroup itself."""

    program_ids: tuple[int, ...]
    flags: int  # BPF_F_ALLOW_*: an attach must repeat them


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    id: int
    name: str
    instructions: bytes  # as the kernel dumps them; empty when it hides them (blinded)
    map_ids: tuple[int, ...]
    is_gpl: bool


@dataclass(frozen=True, slots=True)
class MapInfo:
    name: str
    value_size_bytes: int


def prog_query(cgroup_fd: int) -> Query:
    ids = (ctypes.c_uint32 * MAX_PROGRAMS)()
    attr = _QUERY.pack(cgroup_fd, BPF_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), MAX_PROGRAMS)
    _, out = _bpf(Command.PROG_QUERY, attr)
    (flags,), (count,) = struct.unpack_from("<I", out, 12), _COUNT.unpack_from(out, _COUNT_OFFSET)
    return Query(program_ids=tuple(ids[:count]), flags=flags)


class EffectivePrograms:
    """Asks which device programs run for a cgroup, those of all cgroups above it included.

    Made to be asked over and over, by one thread at a time: nothing is made anew for a question.
    """

    def __init__(self) -> None:
        self._ids = ctypes.create_string_buffer(4 * MAX_EFFECTIVE)
        self._attr = ctypes.create_string_buffer(_ATTR_BUFFER_BYTES)
        self._call = prepared(SYS_BPF, Command.PROG_QUERY, self._attr, _ATTR_SIZE_BYTES)
        self._ids_at = ctypes.addressof(self._ids)

    def of(self, cgroup_fd: int) -> bytes:
        """Return their ids as the kernel writes them, to be compared. Raises OSError."""
        _QUERY.pack_into(
            self._attr,
            0,
            cgroup_fd,
            BPF_CGROUP_DEVICE,
            BPF_F_QUERY_EFFECTIVE,
            0,
            self._ids_at,
            MAX_EFFECTIVE,
        )
        result = made(self._call)
        if result < 0:
            raise OSError(-result, os.strerror(-result), "bpf prog_query")
        (count,) = _COUNT.unpack_from(self._attr, _COUNT_OFFSET)
        return self._ids.raw[: 4 * count]


def prog_attach(cgroup_fd: int, prog_fd: int, *, flags: int, replaced_fd: int) -> None:
    """Put a program into another one's place, atomically.

    Raises FileNotFoundError when that one is not attached there.
    """
    if flags & BPF_F_ALLOW_MULTI:
        attr = struct.pack(
            "<IIIII", cgroup_fd, prog_fd, BPF_CGROUP_DEVICE, flags | BPF_F_REPLACE, replaced_fd
        )
    else:  # the cgroup holds one program, which an attach replaces by itself
        attr = struct.pack("<IIIII", cgroup_fd, prog_fd, BPF_CGROUP_DEVICE, flags, 0)
    _bpf(Command.PROG_ATTACH, attr)


def prog_detach(cgroup_fd: int, prog_fd: int) -> None:
    _bpf(Command.PROG_DETACH, struct.pack("<III", cgroup_fd, prog_fd, BPF_CGROUP_DEVICE))


def newest_program(known: int) -> int:
    """Return the highest id of the programs of this node, of whatever type, or `known`.

    A higher id than before means that programs were loaded: the kernel gives ids in turn, up to
    2**31, after which it begins anew.
    """
    while True:
        try:
            _, out = _bpf(Command.PROG_GET_NEXT_ID, struct.pack("<I", known))
        except FileNotFoundError:
            return known
        (known,) = struct.unpack_from("<I", out, 4)


def prog_get_fd_by_id(program_id: int) -> int:
    """Return a descriptor, which the caller closes. Raises FileNotFoundError."""
    return _bpf(Command.PROG_GET_FD_BY_ID, struct.pack("<I", program_id))[0]


def prog_load(instructions: bytes, *, is_gpl: bool, name: str) -> int:
    """Load a device program; the caller closes the descriptor.

    The error carries the verifier's last words.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL" if is_gpl else b"Apache-2.0")

    def attr(log: Buffer | None) -> bytes:
        return struct.pack(
            "<IIQQIIQII16sII",
            BPF_PROG_TYPE_CGROUP_DEVICE,
            len(instructions) // 8,
            ctypes.addressof(code),
            ctypes.addressof(licence),
            1 if log else 0,
            _LOG_BYTES if log else 0,
            ctypes.addressof(log) if log else 0,
            0,  # kern_version
            0,  # prog_flags
            name.encode(),
            0,  # prog_ifindex
            0,  # expected_attach_type: this program type has only one
        )

    try:
        return _bpf(Command.PROG_LOAD, attr(None))[0]
    except OSError as error:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return _bpf(Command.PROG_LOAD, attr(log))[0]
        except OSError:
            words = log.value[-512:].decode(errors="replace")
            raise OSError(error.errno, f"{error.strerror}: {words}", name) from error


def prog_info(prog_fd: int) -> ProgramInfo:
    """Ask twice: first for the sizes, then for instructions and maps."""
    sizes = ctypes.create_string_buffer(_PROG_INFO_BYTES)
    _obj_get_info(prog_fd, sizes)
    (program_id,) = struct.unpack_from("<I", sizes, 4)
    (code_bytes,) = struct.unpack_from("<I", sizes, 20)
    (map_count,) = struct.unpack_from("<I", sizes, 52)
    name = sizes.raw[64:80].split(b"\0")[0].decode(errors="replace")
    (bits,) = struct.unpack_from("<I", sizes, 84)

    code = ctypes.create_string_buffer(max(code_bytes, 8))
    map_ids = (ctypes.c_uint32 * max(map_count, 1))()
    info = ctypes.create_string_buffer(_PROG_INFO_BYTES)
    struct.pack_into("<I", info, 20, code_bytes)
    struct.pack_into("<Q", info, 32, ctypes.addressof(code))
    struct.pack_into("<I", info, 52, map_count)
    struct.pack_into("<Q", info, 56, ctypes.addressof(map_ids))
    _obj_get_info(prog_fd, info)
    (code_address,) = struct.unpack_from("<Q", info, 32)  # zeroed by the kernel: not to be seen
    return ProgramInfo(
        id=program_id,
        name=name,
        instructions=code.raw[:code_bytes] if code_address else b"",
        map_ids=tuple(map_ids[:map_count]),
        is_gpl=bool(bits & 1),
    )


def map_create(
    map_type: int, *, key_bytes: int, value_bytes: int, entries: int, flags: int, name: str
) -> int:
    """Create a map; the caller closes the descriptor."""
    attr = struct.pack(
        "<IIIIIII16s", map_type, key_bytes, value_bytes, entries, flags, 0, 0, name.encode()
    )
    return _bpf(Command.MAP_CREATE, attr)[0]


def map_get_fd_by_id(map_id: int) -> int:
    return _bpf(Command.MAP_GET_FD_BY_ID, struct.pack("<I", map_id))[0]


def map_info(map_fd: int) -> MapInfo:
    info = ctypes.create_string_buffer(_MAP_INFO_BYTES)
    _obj_get_info(map_fd, info)
    (value_bytes,) = struct.unpack_from("<I", info, 12)
    return MapInfo(
        name=info.raw[24:40].split(b"\0")[0].decode(errors="replace"), value_size_bytes=value_bytes
    )


def map_update(map_fd: int, key: bytes, value: bytes) -> None:
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value, len(value))
    _bpf(Command.MAP_UPDATE_ELEM, _element(map_fd, key_buffer, value_buffer))


def map_lookup(map_fd: int, key: bytes, *, value_bytes: int) -> bytes:
    """Return the value. Raises FileNotFoundError when the key is not there."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value_bytes)
    _bpf(Command.MAP_LOOKUP_ELEM, _element(map_fd, key_buffer, value_buffer))
    return value_buffer.raw


def map_delete(map_fd: int, key: bytes) -> None:
    """Delete a key, or nothing when it is not there."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(Command.MAP_DELETE_ELEM, _element(map_fd, key_buffer, None))
    except FileNotFoundError:
        return


def map_keys(map_fd: int, *, key_bytes: int) -> Iterator[bytes]:
    """Yield all keys of a map that nobody changes meanwhile."""
    key: Buffer | None = None
    while True:
        following = ctypes.create_string_buffer(key_bytes)
        try:
            _bpf(Command.MAP_GET_NEXT_KEY, _element(map_fd, key, following))
        except FileNotFoundError:
            return
        yield following.raw
        key = following


def _element(map_fd: int, key: Buffer | None, value: Buffer | None) -> bytes:
    addresses = (ctypes.addressof(buffer) if buffer else 0 for buffer in (key, value))
    return struct.pack("<IIQQQ", map_fd, 0, *addresses, 0)


def _obj_get_info(fd: int, info: Buffer) -> None:
    attr = struct.pack("<IIQ", fd, len(info), ctypes.addressof(info))
    _bpf(Command.OBJ_GET_INFO_BY_FD, attr)


def _bpf(command: Command, attr: bytes) -> tuple[int, bytes]:
    buffer = ctypes.create_string_buffer(attr, _ATTR_BUFFER_BYTES)
    for _ in range(_LOAD_ATTEMPTS):
        try:
            result = syscall(
                SYS_BPF, command, buffer, _ATTR_SIZE_BYTES, path=f"bpf {command.name.lower()}"
            )
        except OSError as error:
            if command is Command.PROG_LOAD and error.errno == errno.EAGAIN:
                continue
            raise
        return result, buffer.raw
    raise OSError(errno.EAGAIN, "interrupted again and again", f"bpf {command.name.lower()}")
