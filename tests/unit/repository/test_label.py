# SPDX-License-Identifier: Apache-2.0
"""One label lends a node to devicemount: the same in code, manifests, documents and the testbed."""

import re
from pathlib import Path

import pytest
import yaml

from devicemount_agent_api.labels import ENABLED_LABEL, ENABLED_VALUE
from devicemount_testbed.deploy import OPT_IN

ROOT = Path(__file__).parents[3]
MENTION = re.compile(r"devicemount\.io/enable\w*(?:=\w+)?-?")
ALLOWED = {ENABLED_LABEL, f"{ENABLED_LABEL}={ENABLED_VALUE}", f"{ENABLED_LABEL}-"}
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted(
    path
    for folder in ("operator", "agent", "testbed", "crds", "manifests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".yaml", ".sh"}
)


@pytest.mark.parametrize("path", ["agent.yaml", "plugin/plugin.yaml"])
def test_the_daemon_sets_run_on_labelled_nodes_only(path: str) -> None:
    documents = yaml.safe_load_all((ROOT / "manifests/base" / path).read_text())
    daemon_set = next(d for d in documents if d["kind"] == "DaemonSet")
    selector = daemon_set["spec"]["template"]["spec"]["nodeSelector"]
    assert selector == {"kubernetes.io/os": "linux", ENABLED_LABEL: ENABLED_VALUE}


def test_the_testbed_labels_its_nodes_by_it() -> None:
    assert f"{ENABLED_LABEL}={ENABLED_VALUE}" == OPT_IN


@pytest.mark.parametrize("path", DOCUMENTS + SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_names_another_label(path: Path) -> None:
    assert set(MENTION.findall(path.read_text())) <= ALLOWED


def test_the_documents_say_how_to_lend_a_node_and_how_to_take_it_back() -> None:
    text = (ROOT / "docs/install.md").read_text()
    assert f"{ENABLED_LABEL}={ENABLED_VALUE}" in text
    assert f"{ENABLED_LABEL}-" in text
    assert f"{ENABLED_LABEL}={ENABLED_VALUE}" in (ROOT / "README.md").read_text()
