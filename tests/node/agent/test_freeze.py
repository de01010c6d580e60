# SPDX-License-Identifier: Apache-2.0
"""A container is stopped for a moment, and what its owner stopped stays stopped."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devicemount_agent.container.cgroup import Cgroup, CgroupVersion, processes_in
from devicemount_agent.holders.end import Ending, Terms
from devicemount_agent.holders.freeze import Freezer
from devicemount_agent.holders.search import Question
from devicemount_agent.model import DeviceNode, PodUID

from .containers import Box, Lab, in_freezer, thaw
from .test_holders import give
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
    with freezer.frozen(box):
        assert is_frozen(own)
    until(lambda: not is_frozen(own), what="it runs again")
    assert list((tmp_path / "frozen").iterdir()) == []


def test_what_its_owner_froze_stays_frozen(cgroup: tuple[Box, Path], freezer: Freezer) -> None:
    box, own = cgroup
    freeze(own)
    with freezer.frozen(box):
        assert is_frozen(own)
    assert is_frozen(own)
    thaw(own)


def test_the_next_agent_thaws_what_an_agent_left_frozen(
    cgroup: tuple[Box, Path], freezer: Freezer, either: Lab, tmp_path: Path
) -> None:
    box, own = cgroup
    if (agent := os.fork()) == 0:
        with freezer.frozen(box):
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
    with Freezer(tmp_path / "frozen", cgroup_root=v1.root).frozen(box):
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
        with freezer.frozen(box):
            yield processes_in(Cgroup(box.cgroup.version, own, own))

    Ending().round(question, Terms(kill_at=0.0), stopped=stopped)
    assert (own / "cgroup.procs").read_text().split() in ([], [str(box.init_pid)])
    until(lambda: [*processes_in(box.cgroup)] == [box.init_pid], what="nobody else is left")
