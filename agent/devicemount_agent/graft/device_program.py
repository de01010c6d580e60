# SPDX-License-Identifier: Apache-2.0
"""Builds the wrapped device program; pure, no kernel call.

    wrapped = [prologue: allow what our map lists][the original's instructions, byte for byte]

The original is kept in a second map that the prologue references, so that it lives exactly as long
as the wrapped program is attached, and a restarted agent finds everything in the kernel. The
prologue uses r6 and r7, which the original, never having been called with anything in them, cannot
rely on, and hands the context on in r1.
"""

import struct
import zlib
from dataclasses import dataclass

from devicemount_agent.model import Access, DeviceNumber, NodeType

INSTRUCTION_BYTES = 8
KEY_BYTES = 12
VALUE_BYTES = 4
MAX_DEVICES = 1024  # of one container, in the allow map
SYSTEMD_NAME = "sd_devices"  # systemd's src/core/bpf-devices.c; it keeps one on a cgroup

_ACCESS_BITS = {Access.READ: 2, Access.WRITE: 4}  # BPF_DEVCG_ACC_*; 1 is mknod
_TYPE_BITS = {NodeType.BLOCK: 1, NodeType.CHAR: 2}  # BPF_DEVCG_DEV_*

_INSTRUCTION = struct.Struct("<BBhi")
_SAVED = struct.Struct("<4sIII16s")  # magic, length, crc32, id, name
_MAGIC = b"DMO1"

# Opcodes: class, width and mode as linux/bpf_common.h composes them.
_LD_IMM64 = 0x18
_LDX_W = 0x61
_STX_W = 0x63
_MOV64_X = 0xBF
_MOV32_X = 0xBC
_MOV32_K = 0xB4
_MOV64_K = 0xB7
_ADD64_K = 0x07
_AND32_K = 0x54
_AND32_X = 0x5C
_RSH32_K = 0x74
_JEQ_K = 0x15
_JNE_X = 0x5D
_CALL = 0x85
_EXIT = 0x95
_WRITES_REGISTER = {0, 1, 4, 7}  # instruction classes LD, LDX, ALU and ALU64: their target is one

_R0, _R1, _R2, _R3, _R5, _R6, _R7, _FP = 0, 1, 2, 3, 5, 6, 7, 10
_LAST_REGISTER = 10  # r11 is the JIT's own: seen only in the dump of a blinded program
_PSEUDO_MAP_FD = 1
_MAP_LOOKUP_ELEM = 1  # helper
_CTX_ACCESS_TYPE, _CTX_MAJOR, _CTX_MINOR = 0, 4, 8
_KEY_ON_STACK = -KEY_BYTES


class NotReloadable(Exception):
    """The program cannot be loaded again from what the kernel shows of it."""


@dataclass(frozen=True, slots=True)
class Original:
    """The program that was attached before ours."""

    id: int
    name: str
    instructions: bytes


def supersedes(newcomer: Original, former: Original) -> bool:
    """Say whether the one was attached for the other, whose place ours has taken meanwhile.

    Whoever attaches a program anew detaches its own former one, but does not find ours in its
    place. It is the very same, or the same once more, or systemd's, whose rules may have changed.
    """
    if newcomer.id == former.id or newcomer.name == former.name == SYSTEMD_NAME:
        return True
    return (newcomer.name, newcomer.instructions) == (former.name, former.instructions)


def allows_all(dump: bytes) -> bool:
    """Say whether the program allows whatever is asked: nothing in it ever makes r0 other than 1.

    Such is a privileged container's. The kernel dumps no instruction that cannot be reached.
    """
    results = {
        (opcode, immediate)
        for opcode, registers, _, immediate in _INSTRUCTION.iter_unpack(dump)
        if opcode == _CALL or (opcode & 7 in _WRITES_REGISTER and registers & 0xF == _R0)
    }
    return bool(results) and results <= {(_MOV32_K, 1), (_MOV64_K, 1)}


def reloadable(dump: bytes) -> bytes:
    """Return dumped instructions as they can be loaded. Raises NotReloadable with the reason."""
    if not dump:
        raise NotReloadable("the kernel hides its instructions (net.core.bpf_jit_harden)")
    code = bytearray(dump)
    position = 0
    while position < len(code):
        opcode, registers, _, immediate = _INSTRUCTION.unpack_from(code, position)
        destination, source = registers & 0xF, registers >> 4
        if max(destination, source) > _LAST_REGISTER:
            raise NotReloadable("its constants are blinded (net.core.bpf_jit_harden=2)")
        if opcode == _CALL:
            raise NotReloadable("it calls a function")
        if opcode == _LD_IMM64:
            if source:
                raise NotReloadable("it uses a map")
            position += INSTRUCTION_BYTES  # the upper half of the constant
        elif opcode == _MOV32_X and immediate == 1 and destination == source:
            struct.pack_into("<i", code, position + 4, 0)  # zero extension that a JIT had put in
        position += INSTRUCTION_BYTES
    return bytes(code)


def wrap(original: bytes, *, allow_fd: int, original_fd: int) -> bytes:
    """Return the wrapped program; the descriptors are those of the two maps."""
    return prologue(allow_fd=allow_fd, original_fd=original_fd) + original


def prologue(*, allow_fd: int, original_fd: int) -> bytes:
    """Allow when an entry of the map has every bit asked for; else go on with r1 = context."""
    return b"".join(
        (
            _load_map(_R2, original_fd),  # only takes the reference
            _op(_MOV64_X, dst=_R6, src=_R1),
            _op(_LDX_W, dst=_R7, src=_R6, off=_CTX_ACCESS_TYPE),  # access << 16 | type
            _op(_MOV32_X, dst=_R3, src=_R7),
            _op(_AND32_K, dst=_R3, imm=0xFFFF),
            _op(_RSH32_K, dst=_R7, imm=16),
            _op(_STX_W, dst=_FP, src=_R3, off=_KEY_ON_STACK),
            _op(_LDX_W, dst=_R3, src=_R6, off=_CTX_MAJOR),
            _op(_STX_W, dst=_FP, src=_R3, off=_KEY_ON_STACK + 4),
            _op(_LDX_W, dst=_R3, src=_R6, off=_CTX_MINOR),
            _op(_STX_W, dst=_FP, src=_R3, off=_KEY_ON_STACK + 8),
            _load_map(_R1, allow_fd),
            _op(_MOV64_X, dst=_R2, src=_FP),
            _op(_ADD64_K, dst=_R2, imm=_KEY_ON_STACK),
            _op(_CALL, imm=_MAP_LOOKUP_ELEM),
            _op(_JEQ_K, dst=_R0, off=6, imm=0),  # not listed: to the original
            _op(_LDX_W, dst=_R3, src=_R0),
            _op(_MOV32_X, dst=_R5, src=_R7),
            _op(_AND32_X, dst=_R5, src=_R3),
            _op(_JNE_X, dst=_R5, src=_R7, off=2),  # not all of it: to the original
            _op(_MOV32_K, dst=_R0, imm=1),
            _op(_EXIT),
            _op(_MOV64_X, dst=_R1, src=_R6),
        )
    )


def to_key(number: DeviceNumber) -> bytes:
    return struct.pack("<III", _TYPE_BITS[number.node_type], number.major, number.minor)


def from_key(key: bytes) -> DeviceNumber:
    bits, major, minor = struct.unpack("<III", key)
    (kind,) = (node_type.value for node_type in _TYPE_BITS if _TYPE_BITS[node_type] == bits)
    return DeviceNumber(kind, major, minor)


def to_value(access: Access) -> bytes:
    return struct.pack("<I", sum(bit for flag, bit in _ACCESS_BITS.items() if flag in access))


def to_saved(original: Original) -> bytes:
    """Return what the second map holds: a header, then the instructions."""
    code = original.instructions
    header = _SAVED.pack(_MAGIC, len(code), zlib.crc32(code), original.id, original.name.encode())
    return (header + code).ljust(-(-(_SAVED.size + len(code)) // 8) * 8, b"\0")


def from_saved(value: bytes) -> Original:
    """Read back what `to_saved` wrote. Raises NotReloadable when it is not that."""
    magic, length, checksum, program_id, name = _SAVED.unpack_from(value)
    code = value[_SAVED.size : _SAVED.size + length]
    if magic != _MAGIC or len(code) != length or zlib.crc32(code) != checksum:
        raise NotReloadable("the saved original is damaged")
    return Original(id=program_id, name=name.rstrip(b"\0").decode(), instructions=code)


def _op(opcode: int, *, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return _INSTRUCTION.pack(opcode, src << 4 | dst, off, imm)


def _load_map(register: int, map_fd: int) -> bytes:
    return _op(_LD_IMM64, dst=register, src=_PSEUDO_MAP_FD, imm=map_fd) + _op(0)
