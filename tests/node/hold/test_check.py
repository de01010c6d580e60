# SPDX-License-Identifier: Apache-2.0
"""`hold check` answers for the cgroup that it is told to join, and for nobody else's."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import REPOSITORY
from .devicecgroup import Tree, cgroup_trees

REFUSED = str(errno.EPERM)
NULL = Path("/dev/null")
ZERO = Path("/dev/zero")


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check(hold: Path, cgroup: Path, node: Path, access: str) -> list[str]:
    """Ask `hold` for one node from inside `cgroup`; return what it printed."""
    with opened(cgroup, os.O_RDONLY) as directory, opened(node, os.O_PATH) as fd:
        done = subprocess.run(
            [hold, "check", str(directory), f"{fd}:{access}"],
            check=True,
            capture_output=True,
            text=True,
            pass_fds=(directory, fd),
            timeout=2,
        )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture(params=["v1", "v2"])
def tree(request: pytest.FixtureRequest) -> Tree:
    """A cgroup hierarchy that filters devices."""
    trees = cgroup_trees()
    if request.param not in trees:
        pytest.skip(f"this machine has no cgroup {request.param} hierarchy for devices")
    return trees[request.param]


@pytest.fixture
def denying(tree: Tree) -> Iterator[Path]:
    """A cgroup that may read /dev/null and nothing else."""
    with tree.cgroup("hold-denying") as cgroup:
        tree.allow_only_reading(cgroup, NULL)
        yield cgroup


@pytest.fixture
def permitting(tree: Tree) -> Iterator[Path]:
    with tree.cgroup("hold-permitting") as cgroup:
        yield cgroup


@pytest.mark.parametrize("access", ["r", "w", "rw"])
def test_all_is_allowed_where_nothing_filters(hold: Path, permitting: Path, access: str) -> None:
    assert check(hold, permitting, NULL, access) == ["0"]


@pytest.mark.parametrize(
    ("node", "access", "answer"),
    [
        pytest.param(NULL, "r", "0", id="what the filter allows is allowed"),
        pytest.param(NULL, "w", REFUSED, id="another access to the same device is refused"),
        pytest.param(NULL, "rw", REFUSED, id="half of what is asked is not enough"),
        pytest.param(ZERO, "r", REFUSED, id="another device is refused"),
    ],
)
def test_the_cgroups_filter_answers(
    hold: Path, denying: Path, node: Path, access: str, answer: str
) -> None:
    assert check(hold, denying, node, access) == [answer]


def test_several_nodes_are_answered_in_their_order(hold: Path, denying: Path) -> None:
    with (
        opened(denying, os.O_RDONLY) as directory,
        opened(NULL, os.O_PATH) as null,
        opened(ZERO, os.O_PATH) as zero,
    ):
        nodes = [f"{null}:r", f"{zero}:r", f"{null}:r"]
        done = subprocess.run(
            [hold, "check", str(directory), *nodes],
            check=True,
            capture_output=True,
            text=True,
            pass_fds=(directory, null, zero),
        )
    assert done.stdout == f"0\n{REFUSED}\n0\n"


def test_it_leaves_the_cgroup_when_it_ends(hold: Path, denying: Path) -> None:
    check(hold, denying, NULL, "r")
    assert (denying / "cgroup.procs").read_text() == ""


def test_without_descriptors_it_ends_at_once(hold: Path) -> None:
    done = subprocess.run([hold, "check"], check=False, capture_output=True, timeout=2)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_cgroup_that_cannot_be_joined_is_an_error_not_an_answer(hold: Path) -> None:
    with opened(REPOSITORY / "pyproject.toml", os.O_RDONLY) as fd:
        command = [hold, "check", str(fd), f"{fd}:r"]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, pass_fds=(fd,), timeout=2
        )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "cannot join the cgroup" in done.stderr


@pytest.mark.parametrize("arguments", [["run"], ["check", "x"], ["check", "-1"], ["check", "9x"]])
def test_what_it_does_not_understand_is_refused(hold: Path, arguments: list[str]) -> None:
    done = subprocess.run([hold, *arguments], check=False, capture_output=True, timeout=2)
    assert done.returncode == 2
    assert done.stderr.startswith(b"usage:")


@pytest.mark.parametrize("node", ["1", "1:", "1:x", "1:rwm", ":r", "1:r "])
def test_a_node_that_it_does_not_understand_is_refused(
    hold: Path, permitting: Path, node: str
) -> None:
    with opened(permitting, os.O_RDONLY) as directory:
        command = [hold, "check", str(directory), node]
        done = subprocess.run(
            command, check=False, capture_output=True, pass_fds=(directory,), timeout=2
        )
    assert done.returncode == 2
