# SPDX-License-Identifier: Apache-2.0
"""What a process of the target hides may be the device, and keeps it until it cannot be."""

import time

from devicemount_agent.holders.hidden import IN_FLIGHT, REGISTERED

from .test_holders import Mount, holder, mount

__all__ = ["mount"]

MANY = 10_000
SEARCH_S = 5.0  # some ten times what it takes


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


def test_thousands_of_descriptors_are_searched_in_seconds(mount: Mount) -> None:
    mount.box.inside.tell("open_many", "/dev/vcsa", MANY)
    began = time.monotonic()
    assert mount.holders() == (holder(mount.box),)
    assert time.monotonic() - began < SEARCH_S
