# SPDX-License-Identifier: Apache-2.0
"""The device plugin's manifests: the file for `kubectl create -f` is current, and what it asks."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from devicemount_plugin.config import read_config
from devicemount_testbed.layout import default_layout

ROOT = Path(__file__).parents[3]
RENDERED = ROOT / "manifests/moffett-device-plugin/moffett-device-plugin.yaml"
Object = dict[str, Any]


@pytest.fixture(scope="module")
def objects() -> dict[str, Object]:
    return {one["kind"]: one for one in yaml.safe_load_all(RENDERED.read_text())}


def test_the_moffett_file_is_current(tmp_path: Path) -> None:
    rendered = tmp_path / "moffett.yaml"
    command = [ROOT / "tools/manifests.sh", tmp_path / "install.yaml", rendered]
    subprocess.run(command, check=True)
    assert rendered.read_text() == RENDERED.read_text(), "run `make manifests`"


def test_the_moffett_plugin_is_where_the_cards_are_and_unprivileged(
    objects: dict[str, Object],
) -> None:
    daemon_set = objects["DaemonSet"]["spec"]
    pod = daemon_set["template"]["spec"]
    toleration = {"key": "moffett.ai/spu", "operator": "Exists", "effect": "NoSchedule"}
    assert daemon_set["updateStrategy"]["type"] == "RollingUpdate"
    assert objects["DaemonSet"]["metadata"]["namespace"] == "kube-system"
    assert pod["tolerations"] == [toleration]
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {m["name"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"device-plugins", "reports"}
    assert RENDERED.read_text().count("path: /var/lib/kubelet/device-plugins") == 1


def test_the_moffett_plugin_serves_its_resource(objects: dict[str, Object], tmp_path: Path) -> None:
    for name, text in objects["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    assert [one.name for one in read_config(tmp_path).resources] == ["moffett.ai/spu"]


def test_shipped_configurations_add_up(tmp_path: Path) -> None:
    (tmp_path / "devicemount").symlink_to(ROOT)
    kustomization = {
        "resources": ["devicemount/manifests/base/plugin"],
        "components": [f"devicemount/manifests/plugin-configs/{name}" for name in ("fuse", "kvm")],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    kubectl = default_layout().bin / "kubectl"
    done = subprocess.run(
        [kubectl, "kustomize", tmp_path], check=True, capture_output=True, text=True
    )
    kinds = {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}
    assert set(kinds["ConfigMap"]["data"]) == {"plugin.yaml", "fuse.yaml", "kvm.yaml"}
