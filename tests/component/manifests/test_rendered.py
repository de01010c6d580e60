# SPDX-License-Identifier: Apache-2.0
"""manifests/install.yaml is what its sources say, and what `kubectl apply -f` needs."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from devicemount_testbed.layout import default_layout

ROOT = Path(__file__).parents[3]
INSTALL = ROOT / "manifests/install.yaml"
CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "Namespace",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
Object = dict[str, Any]


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return list(yaml.safe_load_all(INSTALL.read_text()))


def containers(objects: list[Object]) -> list[Object]:
    specs = [
        o["spec"]["template"]["spec"] for o in objects if o["kind"] in {"DaemonSet", "Deployment"}
    ]
    return [c for spec in specs for c in [*spec.get("initContainers", ()), *spec["containers"]]]


def test_it_is_current(tmp_path: Path) -> None:
    rendered = tmp_path / "install.yaml"
    subprocess.run([ROOT / "tools/manifests.sh", rendered], check=True)
    assert rendered.read_text() == INSTALL.read_text(), "run `make manifests`"


def test_what_the_rest_lives_in_comes_first(objects: list[Object]) -> None:
    assert [o["kind"] for o in objects[:2]] == ["Namespace", "CustomResourceDefinition"]


def test_everything_has_its_namespace(objects: list[Object]) -> None:
    for each in objects:
        expected = None if each["kind"] in CLUSTER_WIDE else "devicemount-system"
        assert each["metadata"].get("namespace") == expected, each["metadata"]["name"]


def test_the_images_are_this_version_by_the_names_of_make_images(objects: list[Object]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {c["image"] for c in containers(objects)} == {
        f"localhost/devicemount-{part}:{version}" for part in ("operator", "agent", "hold")
    }


def test_the_operator_knows_the_shadow_pods_image(objects: list[Object]) -> None:
    by_name = {c["name"]: c for c in containers(objects)}
    env = {e["name"]: e.get("value") for e in by_name["operator"]["env"]}
    assert env["DEVICEMOUNT_HOLD_IMAGE"] == by_name["hold"]["image"]


def test_the_documented_patch_moves_directories_and_nothing_else(
    tmp_path: Path, objects: list[Object]
) -> None:
    page = (ROOT / "docs/install.md").read_text()
    (patched,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "kustomization.yaml").write_text(patched)
    (tmp_path / "devicemount").symlink_to(ROOT)
    kubectl = default_layout().bin / "kubectl"
    rendered = subprocess.run(
        [kubectl, "kustomize", tmp_path], check=True, capture_output=True, text=True
    ).stdout
    after = host_paths(list(yaml.safe_load_all(rendered)))
    before = host_paths(objects)
    moved = {volume: path for volume, path in after.items() if before[volume] != path}
    assert moved == {"runtime": "/run/k0s", "pod-resources": "/var/lib/k0s/kubelet/pod-resources"}
    for volume in before:
        assert f"`{volume}`" in page or volume in {"cgroup", "dev", "journal", "plugin"}


def host_paths(objects: list[Object]) -> dict[str, str]:
    """Map the agent's volumes to the node's directories."""
    sets = {o["metadata"]["name"]: o for o in objects if o["kind"] == "DaemonSet"}
    volumes = sets["devicemount-agent"]["spec"]["template"]["spec"]["volumes"]
    return {v["name"]: v["hostPath"]["path"] for v in volumes if "hostPath" in v}
