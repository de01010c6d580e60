# SPDX-License-Identifier: Apache-2.0
"""Exactly the holders in question are ended: asked first, killed later, others never signalled."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicemount_agent.graft.access_check import TIMEOUT_S
from devicemount_agent.holders import end
from devicemount_agent.holders.describe import states
from devicemount_agent.holders.end import ASKED, FOREIGN, MAIN, STUCK, Ending, Terms
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import DeviceNode, Holder, PodUID

from .containers import Actor, Box, Lab, thaw
from .test_holders import Mount, Said, disk, granted, mount
from .waiting import until

__all__ = ["disk", "mount"]

LATER = 3600.0


def terms(found: Mount, *, grace_s: float = LATER, spared: int = 0) -> Terms:
    return Terms(
        kill_at=time.monotonic() + grace_s,
        pods=frozenset({found.box.pod_uid}),
        spared=frozenset({spared}),
    )


def notes(left: tuple[Holder, ...]) -> dict[int, str]:
    return {one.pid: one.note for one in left}


def status_of(inside: Actor) -> int:
    return inside.process.wait(5)


def passed_to(found: Mount, *, pod_uid: PodUID | None = None) -> Box:
    """Start a container that was handed the device as a descriptor."""
    with closing(os.open("/dev/vcsa", os.O_RDONLY)) as fd:
        return found.lab.container(pod_uid=pod_uid, pass_fds=(fd,))


def test_a_holder_is_asked_first_and_killed_when_its_grace_is_over(mount: Mount) -> None:
    inside, ending = mount.box.inside, Ending()
    assert isinstance(inside, Actor)
    inside.open("/dev/vcsa")
    inside.tell("ignore_term")
    asked = mount.end(ending, terms(mount))
    assert notes(asked) == {inside.pid: ASKED}
    assert inside.process.poll() is None
    assert mount.end(ending, terms(mount, grace_s=0)) == ()
    assert status_of(inside) == -signal.SIGKILL


def test_one_that_ends_when_asked_is_gone_in_the_same_round(mount: Mount) -> None:
    inside = mount.box.inside
    assert isinstance(inside, Actor)
    inside.open("/dev/vcsa")
    assert mount.end(Ending(), terms(mount)) == ()
    assert status_of(inside) == -signal.SIGTERM


def test_a_holder_is_asked_once(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    mount.box.inside.open("/dev/vcsa")
    mount.box.inside.tell("ignore_term")
    sent: list[int] = []
    monkeypatch.setattr(end, "TERM_WAIT_S", 0.0)
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda _, number: sent.append(number))
    ending = Ending()
    for _ in range(3):
        mount.end(ending, terms(mount))
    assert sent == [signal.SIGTERM]


def test_a_daemonised_child_is_ended_and_the_main_process_is_not(mount: Mount) -> None:
    inside = mount.box.inside
    assert isinstance(inside, Actor)
    fd = inside.open("/dev/vcsa")
    child = inside.tell("fork_child")
    assert {one.pid for one in mount.holders()} == {inside.pid, child}
    left = mount.end(Ending(), terms(mount, spared=inside.pid))
    assert notes(left) == {inside.pid: MAIN}
    inside.close(fd)
    assert mount.end(Ending(), terms(mount, spared=inside.pid)) == ()
    assert inside.process.poll() is None


def test_another_container_of_the_pod_is_ended_another_pod_is_named(mount: Mount) -> None:
    sidecar = passed_to(mount, pod_uid=mount.box.pod_uid)
    stranger = passed_to(mount)
    assert isinstance(sidecar.inside, Actor)
    assert isinstance(stranger.inside, Actor)
    left = mount.end(Ending(), terms(mount, grace_s=0))
    assert notes(left) == {stranger.inside.pid: FOREIGN}
    assert status_of(sidecar.inside) == -signal.SIGKILL
    assert stranger.inside.process.poll() is None


@pytest.fixture
def paused(v2: Lab, hold: Path, vcsa: DeviceNode) -> Iterator[tuple[Mount, Box]]:
    """A container of another pod that has the device, and cannot be asked whether it may."""
    found = granted(v2, hold, vcsa)
    other = passed_to(found)
    (other.cgroup.path / "cgroup.freeze").write_text("1")
    events = other.cgroup.path / "cgroup.events"
    until(lambda: "frozen 1" in events.read_text(), what="it is frozen")
    yield found, other
    thaw(other.cgroup.path)


def test_a_paused_container_is_not_killed_while_nobody_says_whether_it_may(
    paused: tuple[Mount, Box],
) -> None:
    found, other = paused
    began = time.monotonic()
    left = found.end(Ending(), Terms(kill_at=0.0))
    assert notes(left) == {other.init_pid: FOREIGN}
    assert isinstance(other.inside, Actor)
    assert other.inside.process.poll() is None
    assert time.monotonic() - began < TIMEOUT_S, "its answer is not waited for"


@pytest.mark.parametrize("is_own", [True, False], ids=["its own device", "another's"])
def test_of_a_paused_container_the_runtime_says_whether_it_may(
    paused: tuple[Mount, Box], *, is_own: bool
) -> None:
    found, other = paused
    said = Said(found.numbers if is_own else frozenset())
    found.rules = {other.id: said}.get
    assert [one.blocking for one in found.holders()] == [not is_own]
    assert found.end(Ending(), Terms(kill_at=0.0)) == ()
    assert isinstance(other.inside, Actor)
    assert (other.inside.process.poll() is None) is is_own


def test_a_process_with_descriptors_in_flight_is_ended(mount: Mount) -> None:
    inside = mount.box.inside
    inside.tell("put_in_flight", inside.open("/dev/vcsa"))
    assert mount.end(Ending(), terms(mount, grace_s=0)) == ()


@pytest.fixture
def frozen_file(disk: DeviceNode, tmp_path: Path) -> Iterator[int]:
    """A file on a file system that can be made to keep its writers waiting."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", disk.path, place], check=True)
    try:
        with closing(os.open(place / "file", os.O_RDWR | os.O_CREAT)) as fd:
            yield fd
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", place], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["umount", "--lazy", place], check=True)


def test_one_that_kill_does_not_end_is_named_and_signalled_no_more(
    v1: Lab, hold: Path, vcsa: DeviceNode, frozen_file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end, "DEADLINE_S", 0.2)
    place = Path(f"/proc/self/fd/{frozen_file}").readlink().parent
    found = granted(v1, hold, vcsa, pass_fds=(frozen_file,))
    inside = found.box.inside
    assert isinstance(inside, Actor)
    inside.open("/dev/vcsa")
    inside.tell("keep_writing", frozen_file)
    subprocess.run(["fsfreeze", "--freeze", place], check=True)
    until(lambda: "D" in states(inside.pid), what="the writer waits in the kernel")
    ending = Ending()
    assert notes(found.end(ending, terms(found, grace_s=0))) == {inside.pid: STUCK}
    sent: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(signal, "pidfd_send_signal", lambda _, number: sent.append(number))
        assert notes(found.end(ending, terms(found, grace_s=0))) == {inside.pid: STUCK}
    assert sent == []
    subprocess.run(["fsfreeze", "--unfreeze", place], check=True)
    assert status_of(inside) == -signal.SIGKILL
    assert found.end(ending, terms(found, grace_s=0)) == ()
