# SPDX-License-Identifier: Apache-2.0
"""docs/claims.md from docs/claims.yaml: what the field's tools promise, and what shows it here.

A row names the tests that show it, or says why nothing here can; a row with neither, or one that
names a test that is not there, is refused. Tests are found by reading the files, so that this
needs neither root nor the testbed.
"""

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs/claims.yaml"

_HEAD = """# Claims

Generated from `docs/claims.yaml` by `make claims`; a test compares.

What [K8s-Device-Mounter](https://github.com/coldzerofear/device-mounter) and the device plugin of
MOFFETT promise their users, claim by claim in our words, what holds here, and the test that shows
it. Vendors' hardware and software were not run: where a vendor is concerned the test uses a
stand-in that answers the kubelet as the vendor's code does. **Not shown** says what no test here
shows, and why.
"""
_TABLE = "\n| | claim | here | shown by | not shown |\n|---|---|---|---|---|\n"


class ClaimError(Exception):
    """The data file cannot be used; the text names the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One row."""

    number: int
    claim: str  # what the other tool says, in our words
    here: str  # what is so of devicemount
    shown_by: tuple[str, ...] = field(default=())  # file::test below the root
    not_shown: str = ""  # what no test shows, and why


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One document that makes claims."""

    title: str
    claims: tuple[Claim, ...]


def read(path: Path = DATA) -> tuple[Source, ...]:
    """Read and check the data file. Raises ClaimError."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(
        Source(title=source["title"], claims=tuple(_claim(row) for row in source["claims"]))
        for source in content["sources"]
    )


def _claim(row: dict[str, object]) -> Claim:
    known = {"number", "claim", "here", "shown_by", "not_shown"}
    name = f"claim {row.get('number', '?')}"
    if unknown := row.keys() - known:
        raise ClaimError(f"{name}: unknown key {', '.join(sorted(unknown))}")
    shown_by = row.get("shown_by", [])
    if not isinstance(shown_by, list):
        raise ClaimError(f"{name}: shown_by must be a list")
    claim = Claim(
        number=int(str(row["number"])),
        claim=str(row.get("claim", "")),
        here=str(row.get("here", "")),
        shown_by=tuple(str(test) for test in shown_by),
        not_shown=str(row.get("not_shown", "")),
    )
    if not claim.claim or not claim.here:
        raise ClaimError(f"{name}: says nothing")
    if not claim.shown_by and not claim.not_shown:
        raise ClaimError(f"{name}: neither a test nor the reason why there is none")
    return claim


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


def missing_tests(sources: Iterable[Source], root: Path = ROOT) -> list[str]:
    """Return the tests that are named and do not exist."""
    missing = []
    for claim in (claim for source in sources for claim in source.claims):
        for name in claim.shown_by:
            file, _, test = name.partition("::")
            if not (root / file).is_file() or test not in tests_of(root / file):
                missing.append(f"claim {claim.number}: {name}")
    return missing


def to_markdown(sources: Iterable[Source]) -> str:
    """Return docs/claims.md."""
    return _HEAD + "".join(_section(source) for source in sources)


def _section(source: Source) -> str:
    return f"\n## {source.title}\n{_TABLE}" + "".join(_row(claim) for claim in source.claims)


def _row(claim: Claim) -> str:
    shown = "<br>".join(f"`{name}`" for name in claim.shown_by)
    cells = (str(claim.number), claim.claim, claim.here, shown, claim.not_shown)
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |\n"


def main() -> None:
    sources = read()
    if missing := missing_tests(sources):
        sys.exit("these tests do not exist:\n" + "\n".join(missing))
    sys.stdout.write(to_markdown(sources))


if __name__ == "__main__":
    main()
