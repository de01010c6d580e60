# SPDX-License-Identifier: Apache-2.0
"""Every claim has its test or the reason why not, and the page is what the data say."""

from pathlib import Path

from tools import claims, shown

ROOT = Path(__file__).parents[3]


def test_all_thirty_seven_are_there_in_their_order() -> None:
    numbers = [claim.number for source in claims.read() for claim in source.claims]
    assert numbers == list(range(1, 38))


def test_every_test_that_is_named_exists() -> None:
    assert shown.missing_tests(claims.rows(claims.read())) == []


def test_the_page_is_what_the_data_say() -> None:
    assert (ROOT / "docs/claims.md").read_text(encoding="utf-8") == claims.to_markdown(
        claims.read()
    ), "run: make claims"
