# SPDX-License-Identifier: Apache-2.0
"""Who has a terminal is found, also by another name of it: /dev/tty, which anybody may open."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

import pytest

from devicemount_agent.holders.process import ITS_TERMINAL
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import Access, DeviceNode, DeviceNumber, Holder

from .containers import Lab, actor
from .test_holders import Mount, give, granted, holder
from .waiting import until

UNUSED, UNUSED_TOO = 47, 48  # virtual terminals that nobody has
VT_DISALLOCATE = 0x5608


def _terminal(minor: int) -> DeviceNode:
    number = DeviceNumber("c", 4, minor)
    return DeviceNode(f"/dev/tty{minor}", f"/dev/tty{minor}", number, Access.READ | Access.WRITE)


TTY = DeviceNode("/dev/tty", "/dev/tty", DeviceNumber("c", 5, 0), Access.READ | Access.WRITE)


@pytest.fixture
def port() -> Iterator[DeviceNode]:
    """A terminal that stands for a serial port."""
    yield _terminal(UNUSED)
    with closing(os.open("/dev/tty0", os.O_RDONLY | os.O_NOCTTY)) as any_terminal:
        for minor in (UNUSED, UNUSED_TOO):
            with suppress(OSError):  # somebody has it now
                fcntl.ioctl(any_terminal, VT_DISALLOCATE, minor)


@pytest.fixture
def mount(v1: Lab, hold: Path, port: DeviceNode) -> Mount:
    return with_tty(v1, hold, port)


def with_tty(lab: Lab, hold: Path, port: DeviceNode) -> Mount:
    mount = granted(lab, hold, port)
    give(mount.box, TTY, port)
    return mount


def take(mount: Mount, port: DeviceNode) -> int:
    fd = mount.box.inside.tell("take_terminal", port.path)
    assert fd is not None
    return fd


def may_hold(mount: Mount) -> Holder:
    return replace(holder(mount.box), note=ITS_TERMINAL)


def test_who_has_it_as_controlling_terminal_holds_it(mount: Mount, port: DeviceNode) -> None:
    """As long as anybody has it open, it can open it anew."""
    fd = take(mount, port)
    with closing(os.open(port.path, os.O_RDWR | os.O_NOCTTY)):
        mount.box.inside.close(fd)
        assert mount.holders() == (holder(mount.box),)
        assert mount.box.inside.can_open(TTY.path, os.O_RDWR)
    assert mount.holders() == ()


def test_it_is_ended_as_any_holder(mount: Mount, port: DeviceNode) -> None:
    take(mount, port)
    assert mount.kill() == ()
    until(lambda: mount.box.inside.process.poll() == -SIGKILL, what="it has ended")


def test_a_descriptor_by_another_name_holds_until_it_is_closed(
    either: Lab, hold: Path, port: DeviceNode
) -> None:
    mount = with_tty(either, hold, port)
    fd = take(mount, port)
    mount.box.inside.tell("leave_terminal", fd)
    assert mount.holders() == (may_hold(mount),)
    mount.box.inside.close(fd)
    assert mount.holders() == ()


def test_so_does_one_in_a_threads_own_table(mount: Mount, port: DeviceNode) -> None:
    fd = take(mount, port)
    mount.box.inside.tell("open_in_thread", "/dev/tty")
    mount.box.inside.tell("leave_terminal", fd)
    mount.box.inside.close(fd)
    assert mount.holders() == (may_hold(mount),)


def test_a_descriptor_that_only_names_it_holds_nothing(mount: Mount, port: DeviceNode) -> None:
    fd = take(mount, port)
    mount.box.inside.open(TTY.path, os.O_PATH)
    mount.box.inside.tell("leave_terminal", fd)
    mount.box.inside.close(fd)
    assert mount.holders() == ()


def test_a_terminal_of_the_nodes_own_is_named_and_does_not_block(
    either: Lab, hold: Path, port: DeviceNode
) -> None:
    mount = with_tty(either, hold, port)
    with actor() as getty:
        getty.tell("take_terminal", port.path)
        (found,) = (one for one in mount.all_holders() if one.pid == getty.pid)
    assert (found.pod_uid, found.container_id, found.blocking) == (None, None, False)


def test_another_name_counts_in_the_target_only(mount: Mount) -> None:
    other, another = mount.lab.container(), _terminal(UNUSED_TOO)
    give(other, TTY, another)
    other.inside.tell("leave_terminal", other.inside.tell("take_terminal", another.path))
    assert mount.holders() == ()


def test_another_name_is_no_device_of_another_kind(
    v1: Lab, hold: Path, vcsa: DeviceNode, port: DeviceNode
) -> None:
    mount = granted(v1, hold, vcsa)
    give(mount.box, TTY, port)
    take(mount, port)
    assert mount.holders() == ()
