# SPDX-License-Identifier: Apache-2.0
"""What others wrote becomes one bounded line."""

import pytest

from devicemount_agent.logs import plain


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("/dev/gadget0 is gone", "/dev/gadget0 is gone"),
        ("a\nb\x1b[2J\u202e", "a\\nb\\x1b[2J\\u202e"),
        ("x" * 40, "x" * 40),
        ("x" * 41, "x" * 37 + "..."),
        ("\U000e0001" * 40, ("\\U000e0001" * 4)[:37] + "..."),
        ("\udcff", "\\udcff"),
    ],
    ids=["plain", "control characters", "just", "longer", "escapes count", "no unicode"],
)
def test_a_line_is_bounded_and_printable(text: str, line: str) -> None:
    assert plain(text, limit=40) == line
