# SPDX-License-Identifier: Apache-2.0
"""Every claim has its test or the reason why not, and the page is what the data say."""

from pathlib import Path

import pytest

from tools import claims

ROOT = Path(__file__).parents[3]


def write(path: Path, row: str) -> Path:
    path.write_text(f"sources:\n- title: somebody\n  claims:\n  - {row}\n", encoding="utf-8")
    return path


def test_all_thirty_seven_are_there_in_their_order() -> None:
    numbers = [claim.number for source in claims.read() for claim in source.claims]
    assert numbers == list(range(1, 38))


def test_every_test_that_is_named_exists() -> None:
    assert claims.missing_tests(claims.read()) == []


def test_the_page_is_what_the_data_say() -> None:
    assert (ROOT / "docs/claims.md").read_text(encoding="utf-8") == claims.to_markdown(
        claims.read()
    ), "run: make claims"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        pytest.param("{number: 1, claim: c, here: h}", "neither a test nor the reason", id="empty"),
        pytest.param(
            "{number: 1, claim: c, here: h, shown_by: []}", "neither a test nor", id="no test"
        ),
        pytest.param("{number: 1, claim: c, not_shown: n}", "says nothing", id="no words"),
        pytest.param("{number: 1, shown: [a]}", "unknown key shown", id="misspelt"),
        pytest.param("{number: 1, claim: c, here: h, shown_by: a}", "must be a list", id="no list"),
    ],
)
def test_a_row_that_shows_nothing_is_refused(row: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(claims.ClaimError, match=fault):
        claims.read(write(tmp_path / "claims.yaml", row))


@pytest.mark.parametrize(
    "name",
    ["test_x.py::test_b", "test_x.py::helper", "test_y.py::test_a", "test_x.py", "test_x.py::T"],
)
def test_a_test_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text("def test_a(): ...\ndef helper(): ...\nclass T: ...\n")
    row = f"{{number: 1, claim: c, here: h, shown_by: ['{name}']}}"
    assert claims.missing_tests(claims.read(write(tmp_path / "c.yaml", row)), tmp_path) == [
        f"claim 1: {name}"
    ]


def test_a_test_that_is_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "async def test_a(): ...\nclass TestB:\n  def test_c(self): ...\n"
    )
    assert claims.tests_of(tmp_path / "test_x.py") == {"test_a", "TestB::test_c"}
