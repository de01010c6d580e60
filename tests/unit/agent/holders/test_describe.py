# SPDX-License-Identifier: Apache-2.0
"""A command line becomes one safe line of at most 256 bytes, whatever the process wrote there."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devicemount_agent.holders.describe import COMMAND_BYTES, command, pid_inside, printable


@given(raw=st.binary(max_size=COMMAND_BYTES + 1))
def test_any_bytes_become_one_printable_line_within_the_bound(raw: bytes) -> None:
    text = printable(raw)
    assert text.isprintable()
    assert len(text.encode()) <= COMMAND_BYTES


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        pytest.param(b"sleep\x0060\0", "sleep 60", id="arguments are joined"),
        pytest.param(b"sh\0-c\0a\nb\x1b[2J\0", "sh -c a\\nb\\x1b[2J", id="controls are escaped"),
        pytest.param("größe\0".encode(), "größe", id="letters of all kinds stay"),
        pytest.param("\u202eexe\0".encode(), "\\u202eexe", id="no turned direction"),
        pytest.param(b"a" * 257, "a" * 253 + "...", id="a cut is marked"),
        pytest.param(b"a" * 256, "a" * 256, id="what fits is not cut"),
    ],
)
def test_a_command_line_is_shown_as(raw: bytes, text: str) -> None:
    assert printable(raw) == text


def test_ones_own_command_and_pid_are_known() -> None:
    assert "python" in command(os.getpid())
    assert pid_inside(os.getpid()) == os.getpid()
