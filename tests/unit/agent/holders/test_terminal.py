# SPDX-License-Identifier: Apache-2.0
"""A terminal is known by its number, and as the one that controls a process."""

import os
from pathlib import Path

import pytest

from devicemount_agent.holders import terminal
from devicemount_agent.holders.describe import controlling_terminal

SAID = """\
/dev/tty             /dev/tty        5       0 system:/dev/tty
usbserial            /dev/ttyUSB   188 0-511 serial
a driver             /dev/ttyX     204 64 serial
unknown              /dev/tty        4 1-63 console
"""


@pytest.mark.parametrize(
    ("number", "is_one"),
    [
        ((188, 0), True),
        ((188, 511), True),
        ((188, 512), False),
        ((204, 64), True),
        ((204, 65), False),
        ((4, 0), False),
        ((195, 0), False),
    ],
)
def test_a_terminal_is_known_by_the_drivers_numbers(
    number: tuple[int, int], *, is_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "drivers"
    said.write_text(SAID)
    monkeypatch.setattr(terminal, "DRIVERS", str(said))
    assert terminal.are_terminals([os.makedev(*number)]) is is_one


def test_this_kernels_drivers_are_understood() -> None:
    assert terminal.are_terminals([os.makedev(136, 3)])
    assert not terminal.are_terminals([os.makedev(1, 3)])


def test_a_process_cannot_name_itself_another_terminals() -> None:
    comm = Path("/proc/self/comm")
    former, terminal_before = comm.read_bytes(), controlling_terminal(os.getpid())
    comm.write_bytes(b") R 1 1 1 1071 ")
    try:
        assert controlling_terminal(os.getpid()) == terminal_before
    finally:
        comm.write_bytes(former)


@pytest.mark.parametrize("number", [os.makedev(188, 2), os.makedev(136, 300), os.makedev(4095, 1)])
def test_numbers_are_told_as_a_file_has_them(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = number - (1 << 32) if number >> 31 else number
    monkeypatch.setattr(Path, "read_bytes", lambda _: f"1 (a) b) S 1 1 1 {told} 1".encode())
    assert controlling_terminal(1) == number


def test_a_process_that_has_ended_has_none() -> None:
    assert terminal.controlling(1 << 30) == 0
