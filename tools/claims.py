# SPDX-License-Identifier: Apache-2.0
"""docs/claims.md from docs/claims.yaml: what the field's tools promise, and what shows it here."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from tools.shown import ROOT, Row, missing_tests, to_line, to_row

DATA = ROOT / "docs/claims.yaml"

_HEAD = """# Claims

Generated from `docs/claims.yaml` by `make claims`; a test compares.

What [K8s-Device-Mounter](https://github.com/coldzerofear/device-mounter) and the device plugin of
MOFFETT promise their users, claim by claim in our words, what holds here, and the test that shows
it. Of vendors' hardware an NVIDIA H100 was run ([what it showed](evidence/gpu.md)), of their
software nothing but its driver: elsewhere the test uses a stand-in that answers the kubelet as the
vendor's code does. **Not shown** says what no test here shows, and why.
"""
_TABLE = "\n| | claim | here | shown by | not shown |\n|---|---|---|---|---|\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One document that makes claims."""

    title: str
    claims: tuple[Row, ...]


def read(path: Path = DATA) -> tuple[Source, ...]:
    """Read and check the data file. Raises RowError."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(
        Source(
            title=source["title"],
            claims=tuple(to_row(row, kind="claim") for row in source["claims"]),
        )
        for source in content["sources"]
    )


def rows(sources: Iterable[Source]) -> tuple[Row, ...]:
    """Return the claims of all sources."""
    return tuple(claim for source in sources for claim in source.claims)


def to_markdown(sources: Iterable[Source]) -> str:
    """Return docs/claims.md."""
    return _HEAD + "".join(_section(source) for source in sources)


def _section(source: Source) -> str:
    return f"\n## {source.title}\n{_TABLE}" + "".join(to_line(claim) for claim in source.claims)


def main() -> None:
    sources = read()
    if missing := missing_tests(rows(sources)):
        sys.exit("these tests do not exist:\n" + "\n".join(missing))
    sys.stdout.write(to_markdown(sources))


if __name__ == "__main__":
    main()
