# SPDX-License-Identifier: Apache-2.0
"""Texts of others made fit for status: schedulers', policies', command lines."""

import unicodedata
from collections.abc import Sequence
from typing import Final

MAX_EVENT_MESSAGE: Final = 1024  # characters: the API server's own limit
_LISTED: Final = 4  # names in a sentence; status has all of them
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def clip(text: str, limit: int) -> str:
    """Return valid UTF-8 on one line, controls escaped; a cut is marked with the true length."""
    clean = "".join(_visible(character) for character in text)
    if len(clean) <= limit:
        return clean
    mark = f"... ({len(clean)} characters)"
    return clean[: limit - len(mark)] + mark if limit > len(mark) else clean[:limit]


def listing(names: Sequence[str], *, total: int | None = None) -> str:
    """Return the first names and how many more there are; `total` where not all are known."""
    unnamed = (len(names) if total is None else total) - min(len(names), _LISTED)
    return ", ".join(names[:_LISTED]) + (f" and {unnamed} more" if unnamed > 0 else "")


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":  # half of a surrogate pair: no UTF-8 has it
        return _REPLACEMENT
    if category in ("Cc", "Cf", "Zl", "Zp"):  # controls; what reorders or hides; line breaks
        return character.encode("unicode_escape").decode("ascii")
    return character
