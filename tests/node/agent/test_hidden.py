# SPDX-License-Identifier: Apache-2.0
"""What a process of the target hides may be the device, and keeps it until it cannot be."""

import time
from pathlib import Path

from devicemount_agent.holders.hidden import IN_FLIGHT, REGISTERED
from devicemount_agent.model import DeviceNode

from .containers import Lab
from .test_holders import Mount, granted, holder, mount

__all__ = ["mount"]

MANY = 100_000
PROCESSES = 8  # none of which may have so many
SEARCH_S = 20.0  # some ten times what it takes
SEARCH_KIB = 32 << 10


def notes(found: Mount) -> list[str]:
    return [one.note for one in found.holders() if one.blocking]


def test_a_descriptor_in_flight_may_be_the_device(mount: Mount) -> None:
    inside = mount.box.inside
    inside.tell("put_in_flight", inside.open("/dev/vcsa"))
    assert notes(mount) == [IN_FLIGHT]
    fd = inside.tell("receive_from_flight")
    assert mount.holders() == (holder(mount.box),)
    assert fd is not None
    inside.close(fd)
    assert mount.holders() == ()


def test_a_file_registered_with_io_uring_may_be_the_device(mount: Mount) -> None:
    inside = mount.box.inside
    inside.tell("register_file", inside.open("/dev/vcsa"))
    assert notes(mount) == [REGISTERED]


def test_a_registered_pipe_is_no_device(mount: Mount) -> None:
    mount.box.inside.tell("register_file", 0)
    assert mount.holders() == ()


def test_what_others_hide_is_not_asked(mount: Mount) -> None:
    other = mount.lab.container(restrict=lambda _: None)
    other.inside.tell("put_in_flight", other.inside.open("/"))
    assert mount.holders() == ()


def peak_kib() -> int:
    """Return the most memory that this process has had since it was last asked."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.partition("VmHWM:")[2].split()[0])


def test_a_hundred_thousand_descriptors_are_searched_in_bounded_time_and_memory(
    v1: Lab, hold: Path, vcsa: DeviceNode
) -> None:
    mount = granted(v1, hold, vcsa)
    inside = mount.box.inside
    inside.tell("open_many", "/dev/vcsa", MANY // PROCESSES)
    children = {inside.tell("fork_child") for _ in range(PROCESSES - 1)}
    peak_kib()
    began, before_kib = time.monotonic(), peak_kib()
    assert {one.pid for one in mount.holders()} == {inside.pid, *children}
    assert time.monotonic() - began < SEARCH_S
    assert peak_kib() - before_kib < SEARCH_KIB
