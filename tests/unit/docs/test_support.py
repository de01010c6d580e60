# SPDX-License-Identifier: Apache-2.0
"""The support table is what the matrix found, whole."""

from pathlib import Path

from tools import support
from tools.support import Found, Outcome, Row, Versions

ROOT = Path(__file__).parents[3]


VERSIONS = Versions(
    kubernetes="1.2.3", containerd="4.5", runc="6.7", crun="8.9", kernel="10.11", machine="pdp11"
)


def row(runtime: str, shape: str, outcome: Outcome, reason: str = "") -> Row:
    return Row(
        node="node1",
        cgroup="v1",
        driver="cgroupfs",
        runtime=runtime,
        shape=shape,
        outcome=outcome,
        reason=reason,
    )


def test_the_page_is_what_the_matrix_found() -> None:
    page = (ROOT / "docs/support.md").read_text(encoding="utf-8")
    assert page == support.to_markdown(support.read()), "run: make support"


def test_every_combination_has_its_cell() -> None:
    rows = support.read().rows
    kinds = {(row.node, row.runtime) for row in rows}
    assert {node for node, _ in kinds} == {"node1", "node2", "node3"}
    assert len(kinds) == 6
    shapes = {row.shape for row in rows}
    assert len(shapes) == 7
    assert len(rows) == len(kinds) * len(shapes)


def test_node1_is_named_as_what_it_is() -> None:
    assert "cgroup v1 for devices beside an empty v2 (hybrid)" in support.to_markdown(
        support.read()
    )


def test_what_did_not_run_says_why_once() -> None:
    why = "cgroups in hybrid mode not supported"
    page = support.to_markdown(
        Found(
            VERSIONS,
            (
                row("runc", "plain", Outcome.WORKS),
                row("crun", "plain", Outcome.NOT_RUN, why),
                row("crun", "distroless", Outcome.NOT_RUN, why),
            ),
        )
    )
    lines = [line for line in page.splitlines() if line.startswith("| cgroup")]
    assert lines[0].endswith("| runc 6.7 | works | not run |")
    assert lines[1].endswith("| crun 8.9 | not run (1) | not run (1) |")
    assert page.endswith(f"\n1. {why}\n")
    said = " ".join(page.split())
    assert "Kubernetes 1.2.3, containerd 4.5, runc 6.7, crun 8.9, Linux 10.11, pdp11;" in said


def test_what_was_found_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = Found(VERSIONS, (row("runc", "plain", Outcome.WORKS),))
    (tmp_path / "support.json").write_text(support.to_json(found))
    assert support.read(tmp_path / "support.json") == found
    assert support.outcomes(found.rows) == {("node1", "runc", "plain"): Outcome.WORKS}
