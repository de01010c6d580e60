# SPDX-License-Identifier: Apache-2.0
"""Every figure of the agent stands on the page, and nothing else of it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
MADE = re.compile(r'(?:Counter|gauge)\(\s*"(devicemount_\w+)"')
LISTED = re.compile(r"^\| `(devicemount_\w+)", re.MULTILINE)


def test_the_page_names_what_the_agent_has() -> None:
    sources = (ROOT / "agent/devicemount_agent").rglob("*.py")
    made = {name for source in sources for name in MADE.findall(source.read_text())}
    of_agent, _, _ = (ROOT / "docs/metrics.md").read_text().partition("## Device plugin")
    assert made
    assert sorted(LISTED.findall(of_agent)) == sorted(made)
