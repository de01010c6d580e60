# SPDX-License-Identifier: Apache-2.0
"""Containers that are not grafted into are named as such."""

import shutil
from pathlib import Path

import pytest

from devicemount_agent.container.runtimes import UNKNOWN, RuntimeFacts
from devicemount_agent.errors import UnsupportedRuntime
from devicemount_agent.graft import graft

from .containers import Lab, StandIn
from .waiting import until


def test_a_plain_container_is_supported(either: Lab) -> None:
    graft.supported(either.container())


def test_the_nodes_own_dev_is_named(v1: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    box = v1.container()
    monkeypatch.setattr("devicemount_agent.graft.shape.HOST_DEV", box.root / "dev")
    with pytest.raises(UnsupportedRuntime) as caught:
        graft.supported(box)
    assert str(caught.value) == "its /dev is the node's own (a hostPath volume)"


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


def test_a_process_without_the_containers_mounts_is_named(v1: Lab) -> None:
    """Of a runtime that does not say what it is: CRI-O's virtual machines."""
    box = v1.container()
    box.mounts = frozenset({"/etc/hosts", "/dev/termination-log"})
    with pytest.raises(UnsupportedRuntime, match="does not see /dev/termination-log"):
        graft.supported(box)
    box.runtime = RuntimeFacts(type="io.containerd.runc.v2")
    graft.supported(box)
    box.runtime = UNKNOWN
    box.inside.tell("make_file", "/dev/termination-log")
    box.inside.tell("mount", "/dev/termination-log", "/dev/termination-log", "", 0x1000)
    graft.supported(box)


def test_a_kernel_in_user_space_is_named(tmp_path: Path) -> None:
    sentry = tmp_path / "runsc"
    shutil.copy("/bin/sleep", sentry)
    with StandIn.running(str(sentry), "60") as process:
        until(lambda: process.program() == sentry.name, what="it runs")
        with pytest.raises(UnsupportedRuntime, match="its process is runsc: a sandboxed runtime"):
            graft.supported(process.container())
