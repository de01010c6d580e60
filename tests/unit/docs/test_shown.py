# SPDX-License-Identifier: Apache-2.0
"""A row of a page names tests that exist, or says why there is none."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import shown


def row(text: str) -> shown.Row:
    return shown.to_row(yaml.safe_load(text), kind="claim")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param("{number: 1, claim: c, here: h}", "neither a test nor the reason", id="empty"),
        pytest.param(
            "{number: 1, claim: c, here: h, shown_by: []}", "neither a test nor", id="no test"
        ),
        pytest.param("{number: 1, claim: c, not_shown: n}", "says nothing", id="no words"),
        pytest.param("{number: 1, shown: [a]}", "unknown key shown", id="misspelt"),
        pytest.param("{number: 1, fault: f}", "unknown key fault", id="a row of another page"),
        pytest.param("{number: 1, claim: c, here: h, shown_by: a}", "must be a list", id="no list"),
    ],
)
def test_a_row_that_shows_nothing_is_refused(text: str, fault: str) -> None:
    with pytest.raises(shown.RowError, match=fault):
        row(text)


@pytest.mark.parametrize(
    "name",
    ["test_x.py::test_b", "test_x.py::helper", "test_y.py::test_a", "test_x.py", "test_x.py::T"],
)
def test_a_test_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text("def test_a(): ...\ndef helper(): ...\nclass T: ...\n")
    wrong = row(f"{{number: 1, claim: c, here: h, shown_by: ['{name}']}}")
    assert shown.missing_tests([wrong], tmp_path) == [f"claim 1: {name}"]


def test_a_test_that_is_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "async def test_a(): ...\nclass TestB:\n  def test_c(self): ...\n"
    )
    assert shown.tests_of(tmp_path / "test_x.py") == {"test_a", "TestB::test_c"}


def test_what_would_break_the_table_is_escaped() -> None:
    text: dict[str, Any] = {"number": 1, "claim": "a|b", "here": "c\nd", "not_shown": "e"}
    assert shown.to_line(shown.to_row(text, kind="claim")) == "| 1 | a\\|b | c d |  | e |\n"
