# SPDX-License-Identifier: Apache-2.0
"""The files that a node is started with."""

import configparser
from pathlib import Path

import pytest
import yaml

from devicemount_testbed.layout import Layout
from devicemount_testbed.node import write_files
from devicemount_testbed.topology import NODES, RUNTIMES, CgroupDriver, Node

SYSTEMD_NODE = next(node for node in NODES if node.driver is CgroupDriver.SYSTEMD)
SERVICES = ("containerd", "dbus", "kube-proxy", "kubelet")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(cache=tmp_path)


def unit(layout: Layout, name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, strict=False)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read(layout.node(SYSTEMD_NODE) / "systemd/system" / name)
    return parsed


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.name)
def test_kubelet_and_runtimes_have_the_same_cgroup_driver(layout: Layout, node: Node) -> None:
    write_files(layout, node)
    kubelet = yaml.safe_load((layout.node(node) / "kubelet.yaml").read_text())
    assert kubelet["cgroupDriver"] == node.driver.value
    assert kubelet["cgroupRoot"] == node.cgroup_root
    said = "true" if node.driver is CgroupDriver.SYSTEMD else "false"
    text = (layout.node(node) / "containerd.toml").read_text()
    assert text.count(f"SystemdCgroup = {said}\n") == len(RUNTIMES)
    assert text.count("SystemdCgroup") == len(RUNTIMES)


def test_only_the_node_with_systemd_has_units(layout: Layout) -> None:
    for node in NODES:
        write_files(layout, node)
        units = layout.node(node) / "systemd"
        assert units.exists() == (node is SYSTEMD_NODE)


def test_no_unit_pulls_in_what_a_machine_starts_at_boot(layout: Layout) -> None:
    write_files(layout, SYSTEMD_NODE)
    names = [p.name for p in (layout.node(SYSTEMD_NODE) / "systemd/system").iterdir()]
    assert sorted(names) == sorted(
        [*(f"{name}.service" for name in SERVICES), "dbus.socket", "node.target"]
    )
    for name in names:
        assert unit(layout, name)["Unit"]["DefaultDependencies"] == "no", name


@pytest.mark.parametrize("name", ["containerd", "kube-proxy", "kubelet"])
def test_a_service_that_ends_is_started_again_however_often(layout: Layout, name: str) -> None:
    write_files(layout, SYSTEMD_NODE)
    service = unit(layout, f"{name}.service")
    assert service["Service"]["Restart"] == "always"
    assert service["Unit"]["StartLimitIntervalSec"] == "0"
    log = f"append:{layout.log_of(f'{SYSTEMD_NODE.name}-{name}')}"
    assert service["Service"]["StandardOutput"] == log
