# SPDX-License-Identifier: Apache-2.0
"""A container is stopped for a moment, and what its owner stopped stays stopped."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devicemount_agent.container.cgroup import CgroupVersion, processes_in
from devicemount_agent.holders.end import Ending, Terms
from devicemount_agent.holders.freeze import Freezer
from devicemount_agent.holders.search import Question
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import DeviceNode, PodUID

from .containers import Box, Lab, in_freezer, thaw
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


def freeze(own: Path) -> None:
    is_v1 = (own / "freezer.state").exists()
    (own / ("freezer.state" if is_v1 else "cgroup.freeze")).write_text("FROZEN" if is_v1 else "1")
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
    with freezer.frozen(box.pod_uid, box.cgroup.path.parent):
        assert not is_frozen(own)


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


def test_a_container_without_such_a_cgroup_is_searched_as_it_is(v1: Lab, tmp_path: Path) -> None:
    box = v1.container()
    with Freezer(tmp_path / "frozen", cgroup_root=v1.root).frozen(
        box.pod_uid, box.cgroup.path.parent
    ):
        box.check()
    assert not (tmp_path / "frozen").exists()


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
