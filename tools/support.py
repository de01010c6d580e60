# SPDX-License-Identifier: Apache-2.0
"""docs/support.md from docs/support.json, which the test matrix wrote into dist/.

Nobody writes the table by hand: a combination that did not run says so, with the words of who could
not run it.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs/support.json"

_HEAD = """# Support

Generated from `docs/support.json` by `make support`; a test compares. The file is what
`tests/cluster/test_shapes.py` found: on each node of the testbed a container of each shape was
given a device, opened it as its own user, gave it back, and could then do exactly what it could
before. Kubernetes {kubernetes}, containerd {containerd}, runc {runc}, crun {crun},
Linux {kernel}, {machine}; what has no row here was not run.

Refused by name (`UnsupportedRuntime`): Kata Containers, gVisor, libkrun and other virtual
machines, WebAssembly (by what the runtime says of itself, and by what the container's process
is); a container whose main process made a user namespace of its own, in which any volume could be
its root; a container that has the node's own `/dev`; a mount below a shared mount; a `/dev` whose
file system itself is read-only. A device that would have to be made on a volume is a
`PathConflict`.

The container that is not root has group 0, as platforms have it that give each project a user of
its own: the device files are `root:root` with mode 0660. With `runAsUser` and `runAsGroup` 1000 the
device is mounted and that user may not open it, as at a start; the DeviceMount says so: `Degraded`
with `NotPermitted`.
"""
_NODES = {
    ("v1", "cgroupfs"): "cgroup v1 for devices beside an empty v2 (hybrid), driver cgroupfs",
    ("v2", "cgroupfs"): "cgroup v2, driver cgroupfs",
    ("v2", "systemd"): "cgroup v2, driver systemd",
}


class Outcome(Enum):
    """What came of one combination."""

    WORKS = "works"
    REFUSED = "refused"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """With what it was found."""

    kubernetes: str
    containerd: str
    runc: str
    crun: str
    kernel: str
    machine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One combination."""

    node: str
    cgroup: str
    driver: str
    runtime: str
    shape: str
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """All that one run of the matrix found."""

    versions: Versions
    rows: tuple[Row, ...]


def read(path: Path = DATA) -> Found:
    """Read what the matrix found. Raises KeyError, TypeError, ValueError."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = (Row(**(row | {"outcome": Outcome(row["outcome"])})) for row in content["rows"])
    return Found(Versions(**content["versions"]), tuple(rows))


def to_json(found: Found) -> str:
    rows = [asdict(row) | {"outcome": row.outcome.value} for row in found.rows]
    return json.dumps({"versions": asdict(found.versions), "rows": rows}, indent=1) + "\n"


def outcomes(rows: Iterable[Row]) -> dict[tuple[str, str, str], Outcome]:
    """Return what came of each node, runtime and shape, whatever the versions were."""
    return {(row.node, row.runtime, row.shape): row.outcome for row in rows}


def to_markdown(result: Found) -> str:
    """Return the page: a table of shapes for each runtime of each kind of node."""
    rows, versions = result.rows, asdict(result.versions)
    shapes = tuple(dict.fromkeys(row.shape for row in rows))
    columns = tuple(dict.fromkeys((row.cgroup, row.driver, row.runtime) for row in rows))
    found = {(row.cgroup, row.driver, row.runtime, row.shape): row for row in rows}
    notes: list[str] = []
    lines = [
        _HEAD.format_map(versions),
        "| node | runtime | " + " | ".join(shapes) + " |",
        "|---" * (len(shapes) + 2) + "|",
    ]
    for cgroup, driver, runtime in columns:
        cells = (_cell(found.get((cgroup, driver, runtime, shape)), notes) for shape in shapes)
        where = _NODES.get((cgroup, driver), f"cgroup {cgroup}, driver {driver}")
        lines.append(f"| {where} | {runtime} {versions[runtime]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" + _numbered(notes)


def _cell(row: Row | None, notes: list[str]) -> str:
    if row is None:
        return Outcome.NOT_RUN.value
    if not row.reason:
        return row.outcome.value
    if row.reason not in notes:
        notes.append(row.reason)
    return f"{row.outcome.value} ({notes.index(row.reason) + 1})"


def _numbered(notes: Iterable[str]) -> str:
    listed = "".join(f"{number}. {note}\n" for number, note in enumerate(notes, start=1))
    return f"\n{listed}" if listed else ""


if __name__ == "__main__":
    sys.stdout.write(to_markdown(read()))
