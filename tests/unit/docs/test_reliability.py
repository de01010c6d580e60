# SPDX-License-Identifier: Apache-2.0
"""Every fault has its test or the reason why not, and the page is what the data say."""

from pathlib import Path

from tools import reliability, shown

ROOT = Path(__file__).parents[3]


def test_all_fifty_are_there_in_their_order() -> None:
    assert [row.number for row in reliability.read()] == list(range(1, 51))


def test_every_test_that_is_named_exists() -> None:
    assert shown.missing_tests(reliability.read()) == []


def test_the_page_is_what_the_data_say() -> None:
    assert (ROOT / "docs/reliability.md").read_text(encoding="utf-8") == reliability.to_markdown(
        reliability.read()
    ), "run: make reliability"
