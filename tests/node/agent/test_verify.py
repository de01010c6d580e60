# SPDX-License-Identifier: Apache-2.0
"""Success is said only of what a process of the container could open now."""

from dataclasses import replace
from pathlib import Path

import pytest

from devicemount_agent.container.cgroup import Cgroup, CgroupVersion
from devicemount_agent.errors import (
    FilterBlocked,
    PathConflict,
    TargetNotRunning,
    UnsupportedRuntime,
)
from devicemount_agent.graft import graft
from devicemount_agent.graft.access_check import CheckFailed
from devicemount_agent.graft.verify import may_access, verify
from devicemount_agent.model import Access, DeviceNode, DeviceNumber

from . import programs
from .containers import MS_NODEV, NULL, Box, Lab


def grafted(box: Box, *nodes: DeviceNode) -> Box:
    graft.place(box, nodes)
    numbers = [node.number for node in nodes]
    want = {node.number: node.access for node in nodes}
    graft.permit(box, want, earlier=graft.earlier(box, numbers))
    return box


def test_what_is_granted_and_there_passes(
    either: Lab, vcsa: DeviceNode, vcsu: DeviceNode, hold: Path
) -> None:
    verify(grafted(either.container(), vcsa, vcsu), [vcsa, vcsu], hold=hold)


def test_it_is_asked_where_the_main_process_is(either: Lab, vcsa: DeviceNode, hold: Path) -> None:
    verify(grafted(either.container(below="nested"), vcsa), [vcsa], hold=hold)


def test_a_denied_device_is_said_to_be(
    either: Lab, vcsa: DeviceNode, vcsu: DeviceNode, hold: Path
) -> None:
    box = grafted(either.container(), vcsa)
    graft.place(box, [vcsu])
    with pytest.raises(FilterBlocked, match="/dev/vcsu: EPERM, no cgroup above it denies"):
        verify(box, [vcsa, vcsu], hold=hold)


def test_more_access_than_granted_is_denied(either: Lab, vcsa: DeviceNode, hold: Path) -> None:
    box = grafted(either.container(), replace(vcsa, access=Access.READ))
    verify(box, [replace(vcsa, access=Access.READ)], hold=hold)
    with pytest.raises(FilterBlocked):
        verify(box, [vcsa], hold=hold)


def test_an_ancestor_that_denies_is_named(v2: Lab, vcsa: DeviceNode, hold: Path) -> None:
    box = grafted(v2.container(), vcsa)
    v2.keep(programs.attach(box.cgroup.path.parent, programs.allow_list([NULL])))
    v2.keep(programs.attach(v2.top, programs.allow_all()))  # as systemd has them: none of these
    with pytest.raises(FilterBlocked) as caught:
        verify(box, [vcsa], hold=hold)
    assert str(caught.value) == (
        f"/dev/vcsa: EPERM, denied by the device filter of {box.cgroup.path.parent}"
    )


def test_a_node_with_another_number_is_a_conflict(
    v1: Lab, vcsa: DeviceNode, vcsu: DeviceNode, hold: Path
) -> None:
    box = grafted(v1.container(), vcsa)
    with pytest.raises(PathConflict, match="something else stands at /dev/vcsa: c 7:128"):
        verify(box, [replace(vcsa, number=vcsu.number)], hold=hold)


def test_a_node_that_is_not_there_is_a_conflict(v1: Lab, vcsa: DeviceNode, hold: Path) -> None:
    with pytest.raises(PathConflict, match="/dev/vcsa is not there"):
        verify(v1.container(), [vcsa], hold=hold)


def test_a_nodev_mount_is_refused_though_the_filter_allows(
    v1: Lab, vcsa: DeviceNode, hold: Path
) -> None:
    box = grafted(v1.container(dev_flags=MS_NODEV), vcsa)
    with pytest.raises(UnsupportedRuntime, match="/dev/vcsa is on a nodev mount"):
        verify(box, [vcsa], hold=hold)


def test_a_container_that_has_ended_is_said_to_have(
    either: Lab, vcsa: DeviceNode, hold: Path
) -> None:
    box = grafted(either.container(), vcsa)
    box.inside.process.kill()
    box.inside.process.wait()
    with pytest.raises((TargetNotRunning, PathConflict)):
        verify(box, [vcsa], hold=hold)


def test_a_cgroup_that_is_gone_cannot_be_asked(either: Lab, hold: Path) -> None:
    gone = Cgroup(either.version, either.top / "gone", either.top.parent)
    with pytest.raises(CheckFailed):
        may_access(gone, NULL, Access.READ, hold=hold)


def test_a_frozen_cgroup_gives_no_answer(
    v2: Lab, hold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devicemount_agent.graft.access_check.TIMEOUT_S", 0.1)
    box = v2.container()
    (box.cgroup.path / "cgroup.freeze").write_text("1")
    try:
        with pytest.raises(CheckFailed, match="no answer from inside"):
            may_access(box.cgroup, NULL, Access.READ, hold=hold)
    finally:
        (box.cgroup.path / "cgroup.freeze").write_text("0")


def test_a_cgroup_may_what_its_filter_allows(either: Lab, vcsa: DeviceNode, hold: Path) -> None:
    cgroup = either.container().cgroup
    assert may_access(cgroup, NULL, Access.READ | Access.WRITE, hold=hold)
    assert not may_access(cgroup, vcsa.number, Access.READ, hold=hold)
    top = Cgroup(either.version, cgroup.hierarchy, cgroup.hierarchy)
    assert may_access(top, vcsa.number, Access.READ | Access.WRITE, hold=hold)


def test_a_device_that_no_driver_has_can_be_asked_about(v1: Lab, hold: Path) -> None:
    assert CgroupVersion.V1 is v1.version
    top = Cgroup(v1.version, v1.top.parent, v1.top.parent)
    assert may_access(top, DeviceNumber("c", 250, 99), Access.READ, hold=hold)


def test_nothing_is_left_open(v1: Lab, vcsa: DeviceNode, hold: Path) -> None:
    box = grafted(v1.container(), vcsa)
    before = len(list(Path("/proc/self/fd").iterdir()))
    verify(box, [vcsa], hold=hold)
    may_access(box.cgroup, vcsa.number, Access.READ, hold=hold)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
