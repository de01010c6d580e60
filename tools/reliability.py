# SPDX-License-Identifier: Apache-2.0
"""docs/reliability.md from docs/reliability.yaml: faults, what is so after them, their tests."""

import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

from tools.shown import ROOT, Row, missing_tests, to_line, to_row

DATA = ROOT / "docs/reliability.yaml"

_HEAD = """# Reliability

Generated from `docs/reliability.yaml` by `make reliability`; a test compares.

Fifty faults, what is so after each of them, and the tests that bring it about. **Not shown** says
what no test here shows, and why. After every one of them:

* No leak: every device that the kubelet has allocated for a DeviceMount belongs to one that lives.
* No access without a grant: a container can open a device only while a live shadow pod holds it,
  and no process keeps one that the kubelet may give away.
* No false Ready: it is said of the container that runs now, and verified inside it.
* No stuck deletion, whenever it is provable that nothing can use the device any more.
* Nothing else is touched: other devices, pods and processes are as before.
* Every step may run twice, from wherever it was cut off.

| | fault | what happens | shown by | not shown |
|---|---|---|---|---|
"""


def read(path: Path = DATA) -> tuple[Row, ...]:
    """Read and check the data file. Raises RowError."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(to_row(row, kind="fault") for row in content["faults"])


def to_markdown(rows: Iterable[Row]) -> str:
    """Return docs/reliability.md."""
    return _HEAD + "".join(to_line(row) for row in rows)


def main() -> None:
    rows = read()
    if missing := missing_tests(rows):
        sys.exit("these tests do not exist:\n" + "\n".join(missing))
    sys.stdout.write(to_markdown(rows))


if __name__ == "__main__":
    main()
