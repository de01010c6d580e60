# SPDX-License-Identifier: Apache-2.0
"""The shell blocks of a documentation page, as a reader pastes them into one terminal.

A block is left out only where the paragraph before it says so, for everybody to read.
"""

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"

_FENCE = re.compile(r"^```(\w*)$")
_NOT_RUN = re.compile(
    r"^(?:\*Not run in our tests: (?P<seen>.+)\*"
    r"|\*\u6d4b\u8bd5\u4e2d\u672a\u6267\u884c\uff1a(?P<chinese>.+)\*"
    r"|<!-- not run[^:]*: (?P<comment>.+) -->)$"
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of commands."""

    page: Path
    line: int  # where its first command stands
    script: str
    not_run: str  # why, or ""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, *, language: str = "shell") -> tuple[Block, ...]:
    """Return the page's blocks of that language in order."""
    found: list[Block] = []
    opened: int | None = None  # number of the line after the fence that is open
    wanted, lines = False, list[str]()
    before = ""  # the last line with text outside of blocks
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if (fence := _FENCE.match(line)) and opened is None:
            opened, wanted, lines = number + 1, fence[1] == language, []
        elif line == "```" and opened is not None:
            if wanted:
                found.append(Block(page, opened, "\n".join(lines) + "\n", _reason(before)))
            opened, before = None, ""
        elif opened is not None:
            lines.append(line)
        elif line.strip():
            before = line.strip()
    return tuple(found)


def _reason(line: str) -> str:
    """Return why a block after that line is not run; empty: it is."""
    said = _NOT_RUN.match(line)
    return next(reason for reason in said.groups() if reason) if said else ""


def languages(page: Path) -> set[str]:
    """Return the languages of the page's fenced blocks."""
    fences = (_FENCE.match(line) for line in page.read_text(encoding="utf-8").splitlines())
    return {fence[1] for fence in fences if fence} - {""}
