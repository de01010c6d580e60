# SPDX-License-Identifier: Apache-2.0
"""The repository keeps the promises of its layout, its dependencies and its Makefile."""

import ast
import operator
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULE_OF = {
    "grpcio": "grpc",
    "nvidia-ml-py": "pynvml",
    "protobuf": "google",
    "pyyaml": "yaml",
}
PACKAGES = {
    "": ["operator", "agent"],
    "operator": ["operator/devicemount_operator"],
    "agent": ["agent/devicemount_agent", "agent/devicemount_plugin"],
    "testbed": ["testbed/devicemount_testbed"],
}


def declared() -> list[tuple[str, str]]:
    """Return (part, distribution) for every dependency that a part declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    testbed = tomllib.loads((ROOT / "testbed/pyproject.toml").read_text())["project"]
    lists = {
        "": project["dependencies"],
        "operator": project["optional-dependencies"]["operator"],
        "agent": project["optional-dependencies"]["agent"],
        "testbed": testbed["dependencies"],
    }
    name = re.compile(r"[A-Za-z0-9_.-]+")
    found = ((part, name.match(line)) for part, lines in lists.items() for line in lines)
    return [(part, match.group().lower()) for part, match in found if match]


def imported(part: str) -> set[str]:
    """Return the top-level names that the part's modules import."""
    names: set[str] = set()
    for folder in PACKAGES[part]:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names.update(alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(("part", "distribution"), declared(), ids=lambda value: value or "both")
def test_a_declared_dependency_is_imported(part: str, distribution: str) -> None:
    assert MODULE_OF.get(distribution, distribution) in imported(part)


def test_the_folder_operator_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator/__init__.py").exists()
    assert operator.eq(1, 1)


@pytest.mark.parametrize("name", ["operator", "agent", "dev"])
def test_locked_requirements_have_hashes_and_no_index_address(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text()
    assert "://" not in text
    assert "--index" not in text
    pinned = re.findall(r"^[a-z0-9][^\n]*==[^\n]*\\\n    --hash=", text, re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE))


def test_every_make_target_that_is_promised_has_a_help_line() -> None:
    targets = "demo test soak lint unit component node cluster kubeconfig images proto crds bench"
    shown = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert {line.split()[0] for line in shown.splitlines()} >= {*targets.split(), "clean"}


@pytest.mark.parametrize("suffix", [".py", ".c", ".yaml"])
def test_lint_fails_on_a_source_file_without_its_licence_line(suffix: str, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "tools").mkdir()
    script = tmp_path / "tools/spdx.sh"
    script.write_text((ROOT / "tools/spdx.sh").read_text())
    (tmp_path / f"naked{suffix}").write_text("x\n")
    result = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"naked{suffix}" in result.stderr
