# SPDX-License-Identifier: Apache-2.0
"""The wrapped program allows what the map lists, and else answers as the original."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devicemount_agent.graft.device_program import (
    NotReloadable,
    Original,
    allows_all,
    from_saved,
    prologue,
    reloadable,
    supersedes,
    to_key,
    to_saved,
    to_value,
    wrap,
)
from devicemount_agent.model import Access, DeviceNumber
from node.agent.programs import LOADS, op

from .interpreter import run

KINDS = {"b": 1, "c": 2}
ALL = Access.READ | Access.WRITE
BITS = {Access.READ: 2, Access.WRITE: 4}
MKNOD = 1


def original_allowing(rules: dict[DeviceNumber, int]) -> bytes:
    """Build what runtimes build: each rule in turn, then deny."""
    code = [LOADS]
    for number, bits in rules.items():
        code += [
            op(0x55, dst=2, off=7, imm=KINDS[number.kind]),
            op(0xBC, dst=1, src=3),
            op(0x54, dst=1, imm=bits),
            op(0x5D, dst=1, src=3, off=4),
            op(0x55, dst=4, off=3, imm=number.major),
            op(0x55, dst=5, off=2, imm=number.minor),
            op(0xB4, dst=0, imm=1),
            op(0x95),
        ]
    return b"".join([*code, op(0xB4, dst=0, imm=0), op(0x95)])


numbers = st.builds(
    DeviceNumber,
    kind=st.sampled_from(["b", "c"]),
    major=st.sampled_from([0, 1, 7, 10, 4095]),
    minor=st.sampled_from([0, 1, 3, 129, 2**20 - 1]),
)
accesses = st.sampled_from([Access.READ, Access.WRITE, ALL])
originals = st.dictionaries(numbers, st.integers(0, 7), max_size=6).map(original_allowing)


@given(
    original=originals,
    listed=st.dictionaries(numbers, accesses, max_size=6),
    number=numbers,
    asked=st.integers(1, 7),
)
def test_a_request_is_allowed_if_listed_and_else_as_the_original_says(
    original: bytes, listed: dict[DeviceNumber, Access], number: DeviceNumber, asked: int
) -> None:
    devices = {to_key(n): to_value(access) for n, access in listed.items()}
    request = {
        "kind": KINDS[number.kind],
        "access": asked,
        "major": number.major,
        "minor": number.minor,
    }
    granted = sum(BITS[flag] for flag in BITS if flag in listed.get(number, Access.NONE))
    is_listed = number in listed and asked & granted == asked
    wrapped = wrap(original, allow_fd=7, original_fd=8)
    answer = run(wrapped, **request, devices=devices)
    assert answer == (1 if is_listed else run(original, **request, devices={}))


@given(original=originals)
def test_the_original_follows_the_prologue_byte_for_byte(original: bytes) -> None:
    wrapped = wrap(original, allow_fd=7, original_fd=8)
    assert wrapped == prologue(allow_fd=7, original_fd=8) + original


@given(original=originals)
def test_what_is_dumped_of_a_runtimes_program_can_be_loaded_as_it_is(original: bytes) -> None:
    assert reloadable(original) == original


@given(
    original=st.builds(
        Original,
        id=st.integers(0, 2**31 - 1),
        name=st.text("abcdefghijklmnopqrstuvwxyz_0123456789", max_size=15),
        instructions=originals,
    )
)
def test_the_saved_original_is_read_back_as_it_was(original: Original) -> None:
    saved = to_saved(original)
    assert from_saved(saved) == original
    assert len(saved) % 8 == 0


@given(original=originals, position=st.integers(0), bit=st.integers(0, 7))
def test_a_damaged_original_is_never_attached(original: bytes, position: int, bit: int) -> None:
    saved = bytearray(to_saved(Original(id=1, name="", instructions=original)))
    start = len(saved) - len(saved[32:])  # behind the header
    at = start + position % (len(original) or 1)
    saved[at] ^= 1 << bit
    with pytest.raises(NotReloadable):
        from_saved(bytes(saved))


@given(original=originals, number=numbers, asked=st.integers(1, 7))
def test_a_program_said_to_allow_all_denies_nothing(
    original: bytes, number: DeviceNumber, asked: int
) -> None:
    assert not allows_all(original)
    allowing = original.replace(op(0xB4, dst=0, imm=0), op(0xB4, dst=0, imm=1))
    assert allows_all(allowing)
    request = {
        "kind": KINDS[number.kind],
        "access": asked,
        "major": number.major,
        "minor": number.minor,
    }
    assert run(allowing, **request, devices={}) == 1


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(b"", id="nothing is shown"),
        pytest.param(op(0x85, imm=7) + op(0xB7, dst=0, imm=1) + op(0x95), id="it calls"),
        pytest.param(op(0xB7, dst=0, imm=1) + op(0x07, dst=0, imm=-1) + op(0x95), id="it counts"),
        pytest.param(op(0xB7, dst=0, imm=1) + op(0xBF, dst=0, src=1) + op(0x95), id="it copies"),
        pytest.param(op(0x61, dst=0, src=1) + op(0x95), id="it loads"),
    ],
)
def test_a_program_that_may_deny_is_not_said_to_allow_all(code: bytes) -> None:
    assert not allows_all(code)


def test_making_nodes_is_never_granted() -> None:
    number = DeviceNumber("c", 7, 1)
    wrapped = wrap(original_allowing({}), allow_fd=7, original_fd=8)
    request = {"kind": 2, "access": MKNOD, "major": 7, "minor": 1}
    assert run(wrapped, **request, devices={to_key(number): to_value(ALL)}) == 0


@pytest.mark.parametrize(
    ("dump", "reason"),
    [
        pytest.param(b"", "the kernel hides its instructions", id="nothing is shown"),
        pytest.param(op(0x85, imm=7), "it calls a function", id="it calls"),
        pytest.param(op(0x18, dst=1, src=1) + op(0), "it uses a map", id="it uses a map"),
        pytest.param(op(0xB7, dst=11, imm=5), "its constants are blinded", id="blinded, target"),
        pytest.param(op(0xAF, dst=1, src=11), "its constants are blinded", id="blinded, source"),
    ],
)
def test_what_cannot_be_loaded_again_is_refused_with_the_reason(dump: bytes, reason: str) -> None:
    with pytest.raises(NotReloadable, match=reason):
        reloadable(dump)


def test_a_constant_of_64_bits_is_not_mistaken_for_instructions() -> None:
    dump = op(0x18, dst=1) + struct.pack("<BBhi", 0, 0, 0, 0x85) + op(0x95)
    assert reloadable(dump) == dump


def test_a_zero_extension_that_a_jit_put_in_is_a_plain_move_again() -> None:
    assert reloadable(op(0xBC, dst=3, src=3, imm=1)) == op(0xBC, dst=3, src=3)


RULES, OTHERS = original_allowing({}), original_allowing({DeviceNumber("c", 1, 3): 6})


@pytest.mark.parametrize(
    ("newcomer", "former", "expected"),
    [
        pytest.param((7, "", OTHERS), (7, "", RULES), True, id="the very program once more"),
        pytest.param((8, "", RULES), (7, "", RULES), True, id="the same rules loaded anew"),
        pytest.param((8, "", OTHERS), (7, "", RULES), False, id="other rules of a runtime"),
        pytest.param((8, "a", RULES), (7, "b", RULES), False, id="the same rules of another owner"),
        pytest.param(
            (8, "sd_devices", OTHERS), (7, "sd_devices", RULES), True, id="systemd's, changed"
        ),
        pytest.param((8, "a", OTHERS), (7, "a", RULES), False, id="another's, changed"),
    ],
)
def test_a_program_that_is_attached_anew_takes_the_place_of_its_former_one(
    newcomer: tuple[int, str, bytes], former: tuple[int, str, bytes], *, expected: bool
) -> None:
    assert supersedes(Original(*newcomer), Original(*former)) is expected
