# SPDX-License-Identifier: Apache-2.0
"""cgroup v1: what takes a grant away is seen and given back, also below."""

import os
from contextlib import closing as closed
from pathlib import Path

from devicemount_agent.graft import graft
from devicemount_agent.graft.standing import Eye, Standing
from devicemount_agent.kernel import bpf
from devicemount_agent.model import Access, DeviceNode, DeviceNumber

from .containers import Box, Lab

Earlier = dict[DeviceNumber, Access]


def permit(box: Box, earlier: Earlier, *nodes: DeviceNode) -> Standing:
    standing = graft.permit(box, {node.number: node.access for node in nodes}, earlier=earlier)
    assert standing is not None
    return standing


def is_seen(standing: Standing) -> bool:
    with closed(Eye(standing, bpf.EffectivePrograms())) as eye:
        return not eye.is_as_it_stood()


def rewrite(cgroup: Path) -> None:
    """Write the container's own rules anew, as crun's update and systemd's reload do."""
    (cgroup / "devices.deny").write_text("a")
    for rule in ("c *:* m", "b *:* m", "c 1:3 rwm"):
        (cgroup / "devices.allow").write_text(rule)


def test_rules_that_are_written_anew_are_given_the_device_again(v1: Lab, vcsa: DeviceNode) -> None:
    box = v1.container()
    graft.place(box, [vcsa])
    earlier = dict(graft.earlier(box, [vcsa.number]))
    standing = permit(box, earlier, vcsa)
    for _ in range(5):
        assert not is_seen(standing)
        rewrite(box.cgroup.path)
        assert not box.inside.can_open("/dev/vcsa")
        assert is_seen(standing)
        standing = permit(box, earlier, vcsa)
        assert standing.was_made
        assert box.inside.can_open("/dev/vcsa", os.O_RDWR)
    assert not permit(box, earlier, vcsa).was_made
    permit(box, earlier)
    assert "7:128" not in (box.cgroup.path / "devices.list").read_text()


def test_what_it_had_before_us_stays_when_another_wrote_its_rules_anew(
    v1: Lab, vcsa: DeviceNode
) -> None:
    def restrict(cgroup: Path) -> None:
        v1.allow_null_only(cgroup)
        (cgroup / "devices.allow").write_text("c 7:128 r")

    box = v1.container(restrict=restrict)
    earlier = dict(graft.earlier(box, [vcsa.number]))
    permit(box, earlier, vcsa)
    restrict(box.cgroup.path)
    permit(box, earlier, vcsa)
    permit(box, earlier)
    assert "c 7:128 r\n" in (box.cgroup.path / "devices.list").read_text()


def test_a_cgroup_that_is_made_below_later_has_it_and_loses_it(v1: Lab, vcsa: DeviceNode) -> None:
    box = v1.container()
    earlier = dict(graft.earlier(box, [vcsa.number]))
    standing = permit(box, earlier, vcsa)
    nested = box.cgroup.path / "nested"
    v1.make(nested)
    assert "c 7:128 rw" in (nested / "devices.list").read_text()
    assert not is_seen(standing)
    (box.cgroup.path / "devices.deny").write_text("c 7:128 rw")
    assert "7:128" not in (nested / "devices.list").read_text()
    permit(box, earlier, vcsa)
    assert "c 7:128 rw" in (nested / "devices.list").read_text()
    permit(box, earlier)
    assert "7:128" not in (nested / "devices.list").read_text()


def test_another_rule_of_somebody_elses_is_seen_and_is_no_repair(v1: Lab, vcsa: DeviceNode) -> None:
    box = v1.container()
    earlier = dict(graft.earlier(box, [vcsa.number]))
    standing = permit(box, earlier, vcsa)
    (box.cgroup.path / "devices.allow").write_text("c 7:2 rw")
    assert is_seen(standing)
    assert not permit(box, earlier, vcsa).was_made
    permit(box, earlier)
    assert "c 7:2 rw" in (box.cgroup.path / "devices.list").read_text()
