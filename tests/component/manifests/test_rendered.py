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
INSTALL_PAGE = ROOT / "docs/install.md"
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
RIGHT_TO_SECRETS = "devicemount-operator-certificates"
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


def test_the_agent_is_on_tainted_nodes_too(objects: list[Object]) -> None:
    sets = {o["metadata"]["name"]: o for o in objects if o["kind"] == "DaemonSet"}
    pod = sets["devicemount-agent"]["spec"]["template"]["spec"]
    assert pod["tolerations"] == [{"operator": "Exists"}], "whatever their taints are"


def test_the_operator_knows_the_shadow_pods_image(objects: list[Object]) -> None:
    by_name = {c["name"]: c for c in containers(objects)}
    env = {e["name"]: e.get("value") for e in by_name["operator"]["env"]}
    assert env["DEVICEMOUNT_HOLD_IMAGE"] == by_name["hold"]["image"]


def test_the_documented_patch_moves_directories_and_nothing_else(
    tmp_path: Path, objects: list[Object]
) -> None:
    _, overlay = blocks_of_yaml()
    after, before = host_paths(overlaid(tmp_path, overlay)), host_paths(objects)
    moved = {volume: path for volume, path in after.items() if before[volume] != path}
    assert moved == {"runtime": "/run/k0s", "pod-resources": "/var/lib/k0s/kubelet/pod-resources"}
    page = INSTALL_PAGE.read_text()
    for volume in before:
        assert f"`{volume}`" in page or volume in {"cgroup", "dev", "journal", "plugin"}


def test_the_documented_patch_gives_every_pod_the_pull_secret(tmp_path: Path) -> None:
    patches, _ = blocks_of_yaml()
    overlay = f"resources: [devicemount/manifests/overlays/default]\n{patches}"
    objects = overlaid(tmp_path, overlay)
    accounts = {o["metadata"]["name"]: o for o in objects if o["kind"] == "ServiceAccount"}
    of_pods = {
        o["spec"]["template"]["spec"]["serviceAccountName"]
        for o in objects
        if o["kind"] in {"DaemonSet", "Deployment"}
    }
    assert {"devicemount-agent", "devicemount-operator"} <= of_pods
    for name in of_pods:
        assert accounts[name]["imagePullSecrets"] == [{"name": "registry-credentials"}]


def test_base_needs_no_mutating_admission_policy() -> None:
    """As the page has it for Kubernetes 1.30 to 1.35."""
    kinds = {each["kind"] for each in rendered(ROOT / "manifests/base")}
    assert {"DaemonSet", "Deployment", "ValidatingAdmissionPolicy"} <= kinds
    assert not {kind for kind in kinds if kind.startswith("MutatingAdmission")}


def test_with_cert_manager_the_operator_has_no_right_to_secrets(objects: list[Object]) -> None:
    overlay = rendered(ROOT / "manifests/overlays/cert-manager")
    right = {("Role", RIGHT_TO_SECRETS), ("RoleBinding", RIGHT_TO_SECRETS)}
    assert names(objects) - names(overlay) == right
    assert not [rule for rule in rules(overlay) if "secrets" in rule["resources"]]
    assert [rule for rule in rules(objects) if "secrets" in rule["resources"]]
    assert {kind for kind, _ in names(overlay) - names(objects)} == {"Certificate", "Issuer"}


def blocks_of_yaml() -> tuple[str, str]:
    """Return what docs/install.md shows: the patch for a pull secret, the overlay for k0s."""
    patch, overlay = re.findall(r"```yaml\n(.*?)```", INSTALL_PAGE.read_text(), re.DOTALL)
    return patch, overlay


def overlaid(directory: Path, overlay: str) -> list[Object]:
    """Return what an overlay of the site's own gives."""
    (directory / "kustomization.yaml").write_text(overlay)
    (directory / "devicemount").symlink_to(ROOT)
    return rendered(directory)


def rendered(directory: Path) -> list[Object]:
    """Return what `kubectl apply -k` would apply."""
    kubectl = default_layout().bin / "kubectl"
    done = subprocess.run(
        [kubectl, "kustomize", directory], check=True, capture_output=True, text=True
    )
    return list(yaml.safe_load_all(done.stdout))


def names(objects: list[Object]) -> set[tuple[str, str]]:
    return {(each["kind"], each["metadata"]["name"]) for each in objects}


def rules(objects: list[Object]) -> list[Object]:
    return [rule for o in objects if o["kind"].endswith("Role") for rule in o["rules"]]


def host_paths(objects: list[Object]) -> dict[str, str]:
    """Map the agent's volumes to the node's directories."""
    sets = {o["metadata"]["name"]: o for o in objects if o["kind"] == "DaemonSet"}
    volumes = sets["devicemount-agent"]["spec"]["template"]["spec"]["volumes"]
    return {v["name"]: v["hostPath"]["path"] for v in volumes if "hostPath" in v}
