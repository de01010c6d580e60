# SPDX-License-Identifier: Apache-2.0
"""Every figure of operator and agent stands on the page, and nothing else of theirs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MADE = re.compile(r'(?:Counter|Histogram|gauges?)\(\s*"(devicemount_\w+)"')
LISTED = re.compile(r"^\| `(devicemount_\w+)", re.MULTILINE)


@pytest.mark.parametrize(
    ("sources", "heading"),
    [
        ("operator/devicemount_operator", "## Operator"),
        ("agent/devicemount_agent", "## Node agent"),
    ],
)
def test_the_page_names_what_there_is(sources: str, heading: str) -> None:
    files = (ROOT / sources).rglob("*.py")
    made = {name for file in files for name in MADE.findall(file.read_text())}
    _, _, rest = (ROOT / "docs/metrics.md").read_text().partition(heading)
    section, _, _ = rest.partition("\n## ")
    assert made
    assert sorted(LISTED.findall(section)) == sorted(made)
