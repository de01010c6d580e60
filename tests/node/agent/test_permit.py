# SPDX-License-Identifier: Apache-2.0
"""Permission comes with the grant, goes with the revoke, and nothing else changes."""

import os
from pathlib import Path

import pytest

from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.errors import TargetNotRunning
from devicemount_agent.graft import graft
from devicemount_agent.model import Access, DeviceNode

from . import programs
from .containers import Box, Lab
from .waiting import until


def with_nodes(box: Box, *nodes: DeviceNode) -> Box:
    graft.place(box, nodes)
    return box


def filter_of(box: Box) -> object:
    """Return what must be the same before a grant and after its revoke."""
    if box.cgroup.version is CgroupVersion.V1:
        return (box.cgroup.path / "devices.list").read_text()
    return programs.attached(box.cgroup.path)


def test_a_device_opens_from_the_grant_to_the_revoke(
    either: Lab, vcsa: DeviceNode, vcsu: DeviceNode
) -> None:
    box = with_nodes(either.container(), vcsa, vcsu)
    before = filter_of(box)
    earlier = graft.earlier(box, [vcsa.number])
    assert not box.inside.can_open("/dev/vcsa")

    graft.permit(box, {vcsa.number: vcsa.access}, earlier=earlier)
    assert box.inside.can_open("/dev/vcsa", os.O_RDWR)
    assert not box.inside.can_open("/dev/vcsu")

    graft.permit(box, {}, earlier=earlier)
    assert not box.inside.can_open("/dev/vcsa")
    assert not box.inside.can_open("/dev/vcsu")
    assert filter_of(box) == before


def test_of_two_grants_one_is_taken_and_the_other_stays(
    either: Lab, vcsa: DeviceNode, vcsu: DeviceNode
) -> None:
    box = with_nodes(either.container(), vcsa, vcsu)
    earlier = graft.earlier(box, [vcsa.number, vcsu.number])
    graft.permit(box, {n.number: n.access for n in (vcsa, vcsu)}, earlier=earlier)
    assert box.inside.can_open("/dev/vcsa")
    assert box.inside.can_open("/dev/vcsu")

    graft.permit(box, {vcsu.number: vcsu.access}, earlier=earlier)
    assert not box.inside.can_open("/dev/vcsa")
    assert box.inside.can_open("/dev/vcsu")


def test_granting_and_revoking_twice_is_as_once(either: Lab, vcsa: DeviceNode) -> None:
    box = with_nodes(either.container(), vcsa)
    before = filter_of(box)
    earlier = graft.earlier(box, [vcsa.number])
    for _ in range(2):
        graft.permit(box, {vcsa.number: vcsa.access}, earlier=earlier)
    assert box.inside.can_open("/dev/vcsa")
    for _ in range(2):
        graft.permit(box, {}, earlier=earlier)
    assert filter_of(box) == before


def test_a_grant_to_read_is_no_grant_to_write(either: Lab, vcsa: DeviceNode) -> None:
    box = with_nodes(either.container(), vcsa)
    earlier = graft.earlier(box, [vcsa.number])
    graft.permit(box, {vcsa.number: Access.READ}, earlier=earlier)
    assert box.inside.can_open("/dev/vcsa", os.O_RDONLY)
    assert not box.inside.can_open("/dev/vcsa", os.O_WRONLY)
    assert not box.inside.can_open("/dev/vcsa", os.O_RDWR)


def test_a_narrower_grant_takes_what_the_wider_one_gave(either: Lab, vcsa: DeviceNode) -> None:
    box = with_nodes(either.container(), vcsa)
    earlier = graft.earlier(box, [vcsa.number])
    graft.permit(box, {vcsa.number: vcsa.access}, earlier=earlier)
    graft.permit(box, {vcsa.number: Access.READ}, earlier=earlier)
    assert box.inside.can_open("/dev/vcsa", os.O_RDONLY)
    assert not box.inside.can_open("/dev/vcsa", os.O_WRONLY)


def test_what_the_container_had_of_its_own_is_never_touched(either: Lab, vcsa: DeviceNode) -> None:
    box = with_nodes(either.container(), vcsa)
    os.mknod(box.root / "dev/null", 0o20666, os.makedev(1, 3))
    earlier = graft.earlier(box, [vcsa.number])
    for want in ({vcsa.number: vcsa.access}, {}):
        graft.permit(box, want, earlier=earlier)
        assert box.inside.can_open("/dev/null", os.O_RDWR)


def test_a_process_in_a_cgroup_below_the_containers_gets_it_too(
    either: Lab, vcsa: DeviceNode
) -> None:
    box = with_nodes(either.container(below="nested/deeper"), vcsa)
    earlier = graft.earlier(box, [vcsa.number])
    graft.permit(box, {vcsa.number: vcsa.access}, earlier=earlier)
    assert box.inside.can_open("/dev/vcsa")
    graft.permit(box, {}, earlier=earlier)
    assert not box.inside.can_open("/dev/vcsa")


def test_a_container_that_is_gone_has_nothing_to_take(either: Lab, vcsa: DeviceNode) -> None:
    box = either.container()
    box.inside.process.kill()
    box.inside.process.wait()
    until(lambda: is_removed(box.cgroup.path), what="the cgroup is removed")
    graft.permit(box, {}, earlier={vcsa.number: Access.NONE})
    with pytest.raises(TargetNotRunning):
        graft.permit(box, {vcsa.number: vcsa.access}, earlier={})


def is_removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except OSError:
        return False
    return True
