# SPDX-License-Identifier: Apache-2.0
"""A container is stopped for a moment, and what its owner stopped stays stopped."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from devicemount_agent.container.cgroup import CgroupVersion, processes_in
from devicemount_agent.holders.end import Ending, Terms
from devicemount_agent.holders.freeze import Freezer
from devicemount_agent.holders.search import Question, unstopped
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import DeviceNode, PodUID

from .containers import Box, Lab, in_freezer, thaw, wait_for_silent_server
from .test_holders import give, granted
from .waiting import until


@pytest.fixture
def cgroup(either: Lab) -> Iterator[tuple[Box, Path]]:
    """A container, and its cgroup in the hierarchy that freezes."""
    box = either.container(below="nested")
    if either.version is CgroupVersion.V2:
        yield box, box.cgroup.path
        return
    with in_freezer(box) as own:
        yield box, own


def is_frozen(own: Path) -> bool:
    state = own / "freezer.state"
    if state.exists():
        return state.read_text() == "FROZEN\n"
    return "frozen 1" in (own / "cgroup.events").read_text()


def ask(own: Path) -> None:
    is_v1 = (own / "freezer.state").exists()
    (own / ("freezer.state" if is_v1 else "cgroup.freeze")).write_text("FROZEN" if is_v1 else "1")


def freeze(own: Path) -> None:
    ask(own)
    until(lambda: is_frozen(own), what="it is frozen")


@pytest.fixture
def freezer(either: Lab, tmp_path: Path) -> Freezer:
    return Freezer(tmp_path / "frozen", cgroup_root=either.root)


def test_a_container_is_stopped_for_the_block(
    cgroup: tuple[Box, Path], freezer: Freezer, tmp_path: Path
) -> None:
    box, own = cgroup
    with freezer.frozen(box.pod_uid, box.cgroup.path.parent):
        assert is_frozen(own)
    until(lambda: not is_frozen(own), what="it runs again")
    assert list((tmp_path / "frozen").iterdir()) == []


@dataclass
class Deaf:
    """A container with a process that waits in the kernel for a file server."""

    box: Box
    own: Path  # its cgroup in the hierarchy that freezes
    waiting: int  # the process's pid
    cgroup_root: Path
    answered: Callable[[], None]  # ends the wait

    @property
    def pod(self) -> Path:
        return self.box.cgroup.path.parent

    def named(self) -> list[int]:
        """Return the pids of who is said to keep it from being stopped."""
        owner = (self.box.pod_uid, self.box.id)
        return [
            one.pid
            for one in unstopped(processes_in(self.pod), owner, cgroup_root=self.cgroup_root)
        ]

    def is_asked_to_stop(self) -> bool:
        v1 = self.own.parent / "freezer.self_freezing"
        asked = v1 if v1.exists() else self.own.parent / "cgroup.freeze"
        return asked.read_text() == "1\n"


@pytest.fixture
def deaf(either: Lab) -> Iterator[Deaf]:
    with ExitStack() as stack:
        server = stack.enter_context(ExitStack())
        fd = server.enter_context(closing(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)))
        box = either.container(pass_fds=(fd,))
        own = box.cgroup.path
        if either.version is CgroupVersion.V1:
            own = stack.enter_context(in_freezer(box))
        waiting = wait_for_silent_server(box, fd)
        yield Deaf(box, own, waiting, either.root, server.close)
        server.close()


def test_it_is_said_whether_all_of_a_pod_has_stopped(deaf: Deaf, freezer: Freezer) -> None:
    with freezer.frozen(deaf.box.pod_uid, deaf.pod, within_s=0.05) as is_stopped:
        assert not is_stopped
        assert not is_frozen(deaf.own)
        assert deaf.box.init_pid in processes_in(deaf.pod), "it can be searched all the same"
    until(lambda: deaf.named() == [deaf.waiting], what="it is named, once the others go on")
    deaf.answered()
    with freezer.frozen(deaf.box.pod_uid, deaf.pod) as is_stopped:
        assert is_stopped
        assert is_frozen(deaf.own)
    until(lambda: deaf.named() == [0], what="whoever it was: it waits no more")


@pytest.mark.parametrize("by", ["us", "somebody else"])
def test_a_freeze_stays_asked_for_until_a_long_call_ends(
    deaf: Deaf, freezer: Freezer, by: str
) -> None:
    if by == "somebody else":
        ask(deaf.own.parent)

    def answer() -> None:
        until(deaf.is_asked_to_stop, what="it is to stop")
        deaf.answered()

    answering = threading.Thread(target=answer)
    answering.start()
    with freezer.frozen(deaf.box.pod_uid, deaf.pod) as is_stopped:
        assert is_stopped
        assert is_frozen(deaf.own)
    answering.join()
    assert deaf.is_asked_to_stop() is (by == "somebody else")
    thaw(deaf.own.parent)


def test_what_its_owner_froze_stays_frozen(cgroup: tuple[Box, Path], freezer: Freezer) -> None:
    box, own = cgroup
    freeze(own)
    with freezer.frozen(box.pod_uid, box.cgroup.path.parent):
        assert is_frozen(own)
    assert is_frozen(own)
    thaw(own)


def test_nobody_stops_its_own_pod(
    cgroup: tuple[Box, Path], freezer: Freezer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's pod may be a target too, by a container for debugging."""
    box, own = cgroup
    monkeypatch.setattr(os, "getpid", lambda: box.init_pid)
    with freezer.frozen(box.pod_uid, box.cgroup.path.parent) as is_stopped:
        assert not is_frozen(own)
        assert is_stopped, "all that can be"


def test_the_next_agent_thaws_what_an_agent_left_frozen(
    cgroup: tuple[Box, Path], freezer: Freezer, either: Lab, tmp_path: Path
) -> None:
    box, own = cgroup
    if (agent := os.fork()) == 0:
        with freezer.frozen(box.pod_uid, box.cgroup.path.parent):
            os._exit(137)
    os.waitpid(agent, 0)
    assert is_frozen(own)
    Freezer(tmp_path / "frozen", cgroup_root=either.root).thaw_left()
    until(lambda: not is_frozen(own), what="it runs again")
    assert list((tmp_path / "frozen").iterdir()) == []


def test_a_mark_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    marks = tmp_path / "frozen"
    marks.mkdir()
    victim = tmp_path / "cgroup.freeze"
    victim.write_text("1")
    (marks / "a").write_text(f"v2 {tmp_path}")
    (marks / "b").write_text("v")
    Freezer(marks).thaw_left()
    assert victim.read_text() == "1"
    assert list(marks.iterdir()) == []


NO_MARKS: dict[str, Callable[[Path], object]] = {
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
    "no path": lambda path: path.write_bytes(b"v2 /sys/fs/cgroup/a\0b"),
    "too long": lambda path: path.write_bytes(b"v2 /sys/fs/cgroup/" + b"a" * 5000),
    "a pipe": os.mkfifo,
    "a link without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("/nowhere/at/all"),
}


@pytest.mark.parametrize("what", NO_MARKS)
def test_what_cannot_be_a_mark_is_named_and_removed(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    NO_MARKS[what](tmp_path / "pod-a")
    Freezer(tmp_path).thaw_left()
    assert list(tmp_path.iterdir()) == []
    assert "removed unreadable mark pod_uid=pod-a error=" in caplog.text


def test_a_directory_among_the_marks_is_named_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").mkdir()
    for name in ("0", "b"):
        (tmp_path / name).write_text("v")
    Freezer(tmp_path).thaw_left()
    assert [left.name for left in tmp_path.iterdir()] == ["a"]
    assert "not thawed pod_uid=a error=" in caplog.text


def test_a_container_without_such_a_cgroup_is_searched_as_it_is(v1: Lab, tmp_path: Path) -> None:
    box = v1.container()
    with Freezer(tmp_path / "frozen", cgroup_root=v1.root).frozen(
        box.pod_uid, box.cgroup.path.parent
    ) as is_stopped:
        box.check()
        assert is_stopped, "nothing of it could be"
    assert not (tmp_path / "frozen").exists()


def test_what_cannot_be_marked_is_not_called_stopped(
    cgroup: tuple[Box, Path], either: Lab, tmp_path: Path
) -> None:
    box, own = cgroup
    (tmp_path / "full").write_text("no directory")
    freezer = Freezer(tmp_path / "full" / "frozen", cgroup_root=either.root)
    with freezer.frozen(box.pod_uid, box.cgroup.path.parent) as is_stopped:
        assert not is_stopped
        assert not is_frozen(own)


def test_who_goes_on_from_child_to_child_is_killed_where_it_stands(
    cgroup: tuple[Box, Path], freezer: Freezer, either: Lab, hold: Path, vcsa: DeviceNode
) -> None:
    """A search alone never meets it: each one has ended before it is looked at."""
    box, own = cgroup
    give(box, vcsa)
    fd = box.inside.open("/dev/vcsa")
    box.inside.tell("keep_moving", 20)
    box.inside.close(fd)
    question = Question(
        frozenset({vcsa.number}),
        target=box.pod_uid,
        shadow=PodUID(""),
        granted=frozenset(),
        hold=hold,
        cgroup_root=either.root,
    )

    @contextmanager
    def stopped() -> Iterator[Iterator[int]]:
        with freezer.frozen(box.pod_uid, box.cgroup.path.parent):
            yield processes_in(own)

    Ending().round(question, Terms(kill_at=0.0), stopped=stopped)
    assert (own / "cgroup.procs").read_text().split() in ([], [str(box.init_pid)])
    until(lambda: [*processes_in(box.cgroup.path)] == [box.init_pid], what="nobody else is left")


def test_nor_does_one_escape_into_another_container_of_the_pod(
    v2: Lab, tmp_path: Path, hold: Path, vcsa: DeviceNode
) -> None:
    freezer, mount = Freezer(tmp_path / "frozen", cgroup_root=v2.root), granted(v2, hold, vcsa)
    with closing(os.open("/dev/vcsa", os.O_RDONLY)) as fd:
        sidecar = v2.container(pod_uid=mount.box.pod_uid, pass_fds=(fd,))
        sidecar.inside.tell("keep_moving", 20)
        sidecar.inside.close(fd)
    pod = mount.box.cgroup.path.parent

    @contextmanager
    def stopped() -> Iterator[Iterator[int]]:
        with freezer.frozen(mount.box.pod_uid, pod):
            yield processes_in(pod)

    Ending().round(mount.question(), Terms(kill_at=0.0), stopped=stopped)
    until(
        lambda: {*processes_in(pod)} == {mount.box.init_pid, sidecar.init_pid},
        what="nobody else is left",
    )


def test_two_threads_keep_it_stopped_until_both_are_through(
    cgroup: tuple[Box, Path], freezer: Freezer
) -> None:
    box, own = cgroup
    with freezer.frozen(box.pod_uid, box.cgroup.path.parent):
        with freezer.frozen(box.pod_uid, box.cgroup.path.parent):
            assert is_frozen(own)
        assert is_frozen(own)
    until(lambda: not is_frozen(own), what="it runs again")
