# SPDX-License-Identifier: Apache-2.0
"""What a process of the target hides may be the device, and keeps it until it cannot be."""

import os
import pty
import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.holders.freeze import Freezer
from devicemount_agent.holders.hidden import IN_FLIGHT, REGISTERED, REQUESTED
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import DeviceNode

from .containers import Lab, in_freezer
from .test_holders import Mount, granted, holder, mount
from .waiting import until

__all__ = ["mount"]

MANY = 100_000
IORING_OP_POLL_ADD, IORING_OP_ACCEPT = 6, 13
SYS_READ = 0
TERMINAL = 100  # a descriptor
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


def fd_by(mount: Mount, command: str, *arguments: str | int) -> int:
    fd = mount.box.inside.tell(command, *arguments)
    assert fd is not None
    return fd


def test_a_descriptor_in_flight_in_a_socket_that_only_io_uring_keeps_may_be_the_device(
    mount: Mount,
) -> None:
    inside = mount.box.inside
    inside.tell("put_in_flight", inside.open("/dev/vcsa"))
    inside.tell("register_file", fd_by(mount, "detach_receiver"))
    assert notes(mount) == [REGISTERED]


def test_a_registered_socket_whose_descriptor_is_there_is_no_device(mount: Mount) -> None:
    inside, listener = mount.box.inside, fd_by(mount, "listen")
    inside.tell("register_file", fd_by(mount, "duplicate", listener))
    assert mount.holders() == ()
    inside.close(listener)
    assert notes(mount) == [REGISTERED]


def test_a_request_of_io_uring_in_flight_may_have_the_device(mount: Mount) -> None:
    inside = mount.box.inside
    inside.tell("request", IORING_OP_POLL_ADD, inside.open("/dev/vcsa"))
    assert notes(mount) == [REQUESTED]


def test_a_server_that_waits_for_a_client_has_no_device(mount: Mount) -> None:
    mount.box.inside.tell("request", IORING_OP_ACCEPT, fd_by(mount, "listen"))
    assert mount.holders() == ()


def is_worker(task: Path) -> bool:
    return (task / "comm").read_text().startswith("iou-wrk") and "(sleeping)" in status(task)


def is_reader(task: Path) -> bool:
    return (task / "syscall").read_text().startswith(f"{SYS_READ} {TERMINAL:#x} ")


def status(task: Path) -> str:
    return (task / "status").read_text()


def is_open_elsewhere(terminal: int) -> bool:
    """Tell by one end of a terminal whether its other end is open."""
    poll = select.poll()
    poll.register(terminal, 0)
    return not poll.poll(0)


@pytest.mark.parametrize(
    ("command", "waits"),
    [
        pytest.param("read_in_thread", is_reader, id="thread"),
        pytest.param("splice_in_worker", is_worker, id="worker of io_uring"),
    ],
)
def test_who_waits_in_the_kernel_with_what_is_closed_lets_go_of_it_when_stopped(
    command: str, waits: Callable[[Path], bool], either: Lab, tmp_path: Path
) -> None:
    """No search sees it; the freeze around the search interrupts it."""
    with ExitStack() as stack:
        terminal, other_end = pty.openpty()
        stack.enter_context(closing(terminal))
        with closing(other_end):
            os.dup2(other_end, TERMINAL)
        with closing(TERMINAL):
            box = either.container(below="nested", pass_fds=(TERMINAL,))
        if either.version is CgroupVersion.V1:
            stack.enter_context(in_freezer(box))
        box.inside.tell(command, TERMINAL)
        tasks = Path(f"/proc/{box.init_pid}/task")
        until(lambda: any(map(waits, tasks.iterdir())), what="it waits")
        box.inside.close(TERMINAL)
        assert is_open_elsewhere(terminal)
        freezer = Freezer(tmp_path / "frozen", cgroup_root=either.root)
        with freezer.frozen(box.pod_uid, box.cgroup.path.parent):
            pass
        until(lambda: not is_open_elsewhere(terminal), what="it has let go")


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
