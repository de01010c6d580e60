# SPDX-License-Identifier: Apache-2.0
"""What the prober's lines say about opens and refusals."""

from bench.clock import Nanoseconds
from bench.probe import Change, changes_in, first_open, first_refusal

TEXT = """\
100 /dev/vcs 2
101 /dev/vcs1 2
250 /dev/vcs1 0
400 /dev/vcs1 1
401 /dev/vcs1 2
500 /dev/vcs 0
"""


def test_each_line_is_a_change() -> None:
    assert next(iter(changes_in(TEXT))) == Change(at=Nanoseconds(100), path="/dev/vcs", errno=2)


def test_a_line_without_its_end_waits_for_the_rest() -> None:
    assert len(list(changes_in(TEXT + "600 /dev/v"))) == len(TEXT.splitlines())


def test_the_first_open_is_one_after_the_post() -> None:
    assert first_open(changes_in(TEXT), Nanoseconds(200)) == 250
    assert first_open(changes_in(TEXT), Nanoseconds(251)) == 500
    assert first_open(changes_in(TEXT), Nanoseconds(501)) is None


def test_the_first_refusal_is_one_after_the_delete() -> None:
    assert first_refusal(changes_in(TEXT), Nanoseconds(300)) == 400
    assert first_refusal(changes_in(TEXT), Nanoseconds(450)) is None
