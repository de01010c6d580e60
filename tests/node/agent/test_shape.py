# SPDX-License-Identifier: Apache-2.0
"""Containers that are not grafted into (yet) are named as such."""

import shutil
from pathlib import Path

import pytest

from devicemount_agent.errors import UnsupportedRuntime
from devicemount_agent.graft import graft

from .containers import MS_NODEV, MS_RDONLY, Lab, StandIn
from .waiting import until


@pytest.fixture(autouse=True)
def node_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this process for one of the node's: its first one may be out of reach."""
    monkeypatch.setattr("devicemount_agent.graft.shape.NODE_PROCESS", Path("/proc/self"))


def test_a_plain_container_is_supported(either: Lab) -> None:
    graft.supported(either.container())


@pytest.mark.parametrize(
    ("flags", "said"),
    [(MS_NODEV, "its /dev is mounted nodev"), (MS_RDONLY, "its /dev is read-only")],
    ids=["nodev", "read-only"],
)
def test_a_dev_that_takes_no_usable_node_is_named(v1: Lab, flags: int, said: str) -> None:
    box = v1.container(dev_flags=flags)
    with pytest.raises(UnsupportedRuntime) as caught:
        graft.supported(box)
    assert str(caught.value) == said


def test_a_user_namespace_of_its_own_is_named(v1: Lab) -> None:
    with StandIn.running("unshare", "--user", "--mount", "sleep", "60") as process:
        until(lambda: process.program() == "sleep", what="the namespaces are made")
        with pytest.raises(UnsupportedRuntime, match="user namespace of its own"):
            graft.supported(process.container())


def test_a_process_in_the_nodes_own_mount_namespace_is_named() -> None:
    with StandIn.running("sleep", "60") as process:
        until(lambda: process.program() == "sleep", what="it runs")
        with pytest.raises(UnsupportedRuntime, match="the node's own mount namespace"):
            graft.supported(process.container())


def test_a_virtual_machine_is_named(tmp_path: Path) -> None:
    machine = tmp_path / "qemu-system-x86_64"
    shutil.copy("/bin/sleep", machine)
    with StandIn.running(str(machine), "60") as process:
        until(lambda: process.program() == machine.name, what="it runs")
        with pytest.raises(UnsupportedRuntime, match="its process is qemu-system-x86_64"):
            graft.supported(process.container())


def test_a_dev_that_leads_elsewhere_is_named(v1: Lab) -> None:
    box = v1.container()
    box.inside.tell("unmount", "/dev")
    (box.root / "dev").rename(box.root / "other")
    (box.root / "dev").symlink_to("/other")
    with pytest.raises(UnsupportedRuntime, match="its /dev is no plain directory"):
        graft.supported(box)
