# SPDX-License-Identifier: Apache-2.0
"""A wrong directory of the node is named, with the volume that corrects it."""

import socket
from pathlib import Path

import pytest
import yaml

from devicemount_agent import directories
from devicemount_agent.settings import Settings

AGENT = Path(__file__).parents[3] / "manifests/base/agent.yaml"
SOCKETS = {
    "runtime": "containerd.sock",
    "device-plugins": "kubelet.sock",
    "pod-resources": "kubelet.sock",
}


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Path]:
    """A node where everything is in its place."""
    made = {volume: tmp_path / volume / name for volume, name in SOCKETS.items()}
    for path in made.values():
        path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    return made


def settings(node: dict[str, Path]) -> Settings:
    return Settings(
        cri_socket=node["runtime"],
        device_plugins_directory=node["device-plugins"].parent,
        pod_resources_socket=node["pod-resources"],
    )


def test_nothing_is_amiss_where_all_sockets_are(node: dict[str, Path]) -> None:
    assert directories.lacking(settings(node)) == ""


@pytest.mark.parametrize("volume", SOCKETS)
def test_a_directory_without_its_socket_is_named(node: dict[str, Path], volume: str) -> None:
    path = node[volume]
    path.unlink()
    said = directories.lacking(settings(node))
    assert said.startswith(f"no {path.name} in {path.parent}: ")
    assert said.endswith(
        "if it is elsewhere on this node, correct hostPath of the volume"
        f" {volume} of the DaemonSet devicemount-agent"
    )


def test_all_that_are_wrong_are_named_at_once(node: dict[str, Path]) -> None:
    for path in node.values():
        path.unlink()
    assert directories.lacking(settings(node)).count("; no ") == len(SOCKETS) - 1


def test_a_plain_file_is_no_socket(node: dict[str, Path]) -> None:
    node["runtime"].unlink()
    node["runtime"].touch()
    assert "no containerd.sock" in directories.lacking(settings(node))


def test_the_volumes_that_are_named_are_the_manifests(node: dict[str, Path]) -> None:
    """And each is mounted where the settings look."""
    daemon_set = next(d for d in yaml.safe_load_all(AGENT.read_text()) if d["kind"] == "DaemonSet")
    spec = daemon_set["spec"]["template"]["spec"]
    mounts = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
    default = Settings()
    assert {
        "runtime": str(default.cri_socket.parent),
        "device-plugins": str(default.device_plugins_directory),
        "pod-resources": str(default.pod_resources_socket.parent),
        "cdi": str(default.cdi_directory),
        "cdi-dynamic": str(default.cdi_dynamic_directory),
        "plugin": str(default.plugin_directory),
        "profiles": str(default.profiles_directory),
    }.items() <= mounts.items()
    assert daemon_set["metadata"]["name"] == "devicemount-agent"
    for volume in spec["volumes"]:  # where nothing is said, a node has it where the agent has it
        assert (
            volume.get("hostPath", {}).get("path", mounts[volume["name"]])
            == (mounts[volume["name"]])
        )
