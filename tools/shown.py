# SPDX-License-Identifier: Apache-2.0
"""Rows of a page that says what is so and which tests show it (claims, reliability).

A row names the tests that show it, or says why nothing here can; a row with neither, or one that
names a test that is not there, is refused. Tests are found by reading the files, so that this
needs neither root nor the testbed.
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


class RowError(Exception):
    """The data file cannot be used; the text names the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row."""

    kind: str  # what the row is, such as claim
    number: int
    what: str  # said in the field that has the name of the kind
    here: str  # what is so of devicemount
    shown_by: tuple[str, ...]  # file::test below the root
    not_shown: str  # what no test shows, and why


def to_row(row: Mapping[str, object], *, kind: str) -> Row:
    """Parse and check one row of a data file. Raises RowError."""
    name = f"{kind} {row.get('number', '?')}"
    if unknown := row.keys() - {"number", kind, "here", "shown_by", "not_shown"}:
        raise RowError(f"{name}: unknown key {', '.join(sorted(unknown))}")
    shown_by = row.get("shown_by", [])
    if not isinstance(shown_by, list):
        raise RowError(f"{name}: shown_by must be a list")
    found = Row(
        kind=kind,
        number=int(str(row["number"])),
        what=str(row.get(kind, "")),
        here=str(row.get("here", "")),
        shown_by=tuple(str(test) for test in shown_by),
        not_shown=str(row.get("not_shown", "")),
    )
    if not found.what or not found.here:
        raise RowError(f"{name}: says nothing")
    if not found.shown_by and not found.not_shown:
        raise RowError(f"{name}: neither a test nor the reason why there is none")
    return found


def tests_of(path: Path) -> frozenset[str]:
    """Return the names of a file's tests, those of its classes as Class::test."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return frozenset(_functions(tree.body, "")).union(
        *(_functions(cls.body, f"{cls.name}::") for cls in classes)
    )


def _functions(body: Iterable[ast.stmt], prefix: str) -> list[str]:
    return [
        prefix + node.name
        for node in body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    ]


def missing_tests(rows: Iterable[Row], root: Path = ROOT) -> list[str]:
    """Return the tests that are named and do not exist."""
    missing = []
    for row in rows:
        for name in row.shown_by:
            file, _, test = name.partition("::")
            if not (root / file).is_file() or test not in tests_of(root / file):
                missing.append(f"{row.kind} {row.number}: {name}")
    return missing


def to_line(row: Row) -> str:
    """Return the row as a line of a table."""
    shown = "<br>".join(f"`{name}`" for name in row.shown_by)
    cells = (str(row.number), row.what, row.here, shown, row.not_shown)
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |\n"
