# SPDX-License-Identifier: Apache-2.0
"""Runs a device program as the kernel would, as far as programs of this type go."""

import struct
from collections.abc import Mapping

CONTEXT, STACK, VALUE = 1 << 40, 1 << 41, 1 << 42  # where pointers of each kind start
STACK_BYTES = 512
MASK = {4: 2**32 - 1, 7: 2**64 - 1}  # by instruction class: 32 and 64 bits wide


def run(
    instructions: bytes,
    *,
    kind: int,
    access: int,
    major: int,
    minor: int,
    devices: Mapping[bytes, bytes],
) -> int:
    """Return what the program returns for one request; `devices` is the map that it looks up in."""
    context = struct.pack("<III", access << 16 | kind, major, minor)
    stack, value = bytearray(STACK_BYTES), b""
    registers: dict[int, int] = {1: CONTEXT, 10: STACK + STACK_BYTES}
    position = 0
    while True:
        code, pair, offset, immediate = struct.unpack_from("<BBhi", instructions, position * 8)
        destination, source = pair & 15, pair >> 4
        position += 1
        match code:
            case 0x95:
                return registers[0] & MASK[4]
            case 0x18:
                registers[destination] = immediate
                position += 1
            case 0x85:
                assert immediate == 1, "only map_lookup_elem"
                at = registers[2] - STACK
                found = devices.get(bytes(stack[at : at + 12]))
                value = found or b""
                registers = {r: v for r, v in registers.items() if r > 5}  # clobbered
                registers[0] = 0 if found is None else VALUE
            case 0x61:
                at = registers[source] + offset
                memory, base = next(
                    (m, b)
                    for m, b in ((value, VALUE), (stack, STACK), (context, CONTEXT))
                    if at >= b
                )
                (registers[destination],) = struct.unpack_from("<I", memory, at - base)
            case 0x63:
                at = registers[destination] + offset - STACK
                struct.pack_into("<I", stack, at, registers[source] & MASK[4])
            case _ if code & 7 in MASK:
                operand = registers[source] if code & 8 else immediate
                registers[destination] = _compute(
                    code & 0xF0, registers.get(destination, 0), operand, MASK[code & 7]
                )
            case _:
                operand = registers[source] if code & 8 else immediate
                if _holds(code & 0xF0, registers.get(destination, 0), operand):
                    position += offset


def _compute(operation: int, left: int, right: int, mask: int) -> int:
    left, right = left & mask, right & mask
    results = {
        0xB0: right,
        0x00: left + right,
        0x50: left & right,
        0x70: left >> (right & 63),
    }
    return results[operation] & mask


def _holds(operation: int, left: int, right: int) -> bool:
    left, right = left & MASK[7], right & MASK[7]
    return {0x00: True, 0x10: left == right, 0x50: left != right}[operation]
