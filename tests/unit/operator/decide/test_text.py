# SPDX-License-Identifier: Apache-2.0
"""Texts of others: one line, valid UTF-8, no control character, never above the bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devicemount_operator.decide.text import clip, listing


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        pytest.param("plain", 5, "plain", id="what fits stays"),
        pytest.param("a\tb\nc", 99, "a\\tb\\nc", id="controls are escaped"),
        pytest.param("a\u202eb", 99, "a\\u202eb", id="what reorders text is escaped"),
        pytest.param("a\ud800b", 99, "a\N{REPLACEMENT CHARACTER}b", id="no UTF-8"),
        pytest.param("x" * 40, 30, "x" * 11 + "... (40 characters)", id="a cut is marked"),
        pytest.param("x" * 40, 4, "xxxx", id="no room for the mark"),
    ],
)
def test_clip(text: str, limit: int, expected: str) -> None:
    assert clip(text, limit) == expected


@given(st.text(st.characters()), st.integers(0, 300))
def test_whatever_is_clipped_fits_and_can_be_written(text: str, limit: int) -> None:
    clipped = clip(text, limit)
    assert len(clipped) <= limit
    assert clipped.encode().decode() == clipped
    assert not any(ord(character) < 32 or ord(character) == 127 for character in clipped)


def test_listing() -> None:
    assert listing(["a"]) == "a"
    assert listing(list("abcd")) == "a, b, c, d"
    assert listing(list("abcdef")) == "a, b, c, d and 2 more"
    assert listing(list("abcd"), total=9) == "a, b, c, d and 5 more"
