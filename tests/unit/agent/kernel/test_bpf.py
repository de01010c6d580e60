# SPDX-License-Identifier: Apache-2.0
"""Kernels 6.17 to 7.1 write behind the attribute's size that they are told: there must be room."""

import ctypes
import struct

import pytest

from devicemount_agent.kernel import bpf

UNION_BPF_ATTR_BYTES = 256  # more than any kernel's
REVISION_OFFSET = 56


def write_as_6_17(attr: ctypes.Array[ctypes.c_char], size: int) -> None:
    assert len(attr) >= UNION_BPF_ATTR_BYTES
    assert size >= REVISION_OFFSET + 8
    struct.pack_into("<Q", attr, REVISION_OFFSET, 2**64 - 1)


def test_a_query_has_room_for_what_the_kernel_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(_number, _command, attr, size, *, path):
        write_as_6_17(attr, size)
        struct.pack_into("<I", attr, 24, 0)
        return 0

    monkeypatch.setattr(bpf, "syscall", call)
    assert bpf.prog_query(3) == bpf.Query(program_ids=(), flags=0)


def test_a_query_that_is_asked_again_has_it_and_its_own_room_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def call(prepared):
        _, _, attr, size = prepared
        asked.append((struct.unpack_from("<I", attr)[0], struct.unpack_from("<I", attr, 24)[0]))
        write_as_6_17(attr, size.value)
        (address,) = struct.unpack_from("<Q", attr, 16)
        ctypes.memmove(address, struct.pack("<II", 7, 9), 8)
        struct.pack_into("<I", attr, 24, 2)
        return 0

    monkeypatch.setattr(bpf, "made", call)
    programs = bpf.EffectivePrograms()
    assert [programs.of(3), programs.of(4)] == [struct.pack("<II", 7, 9)] * 2
    assert asked == [(3, bpf.MAX_EFFECTIVE), (4, bpf.MAX_EFFECTIVE)]
