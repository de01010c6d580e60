# SPDX-License-Identifier: Apache-2.0
"""cgroup v1: exactly the difference to what was there, and hands off what allows all."""

import os
from pathlib import Path

import pytest

from devicemount_agent.errors import FilterBlocked
from devicemount_agent.graft import graft
from devicemount_agent.model import Access, DeviceNode

from .containers import Box, Lab


def rules(cgroup: Path) -> str:
    return (cgroup / "devices.list").read_text()


def with_rules(v1: Lab, *own: str) -> Box:
    """Start a container that has these rules of its own, besides /dev/null."""

    def restrict(cgroup: Path) -> None:
        v1.allow_null_only(cgroup)
        for rule in own:
            (cgroup / "devices.allow").write_text(rule)

    return v1.container(restrict=restrict)


@pytest.mark.parametrize(
    "own",
    [
        pytest.param("c 7:128 r", id="a rule to read"),
        pytest.param("c 7:128 w", id="a rule to write"),
        pytest.param("c 7:128 rw", id="a rule for all of it"),
        pytest.param("c 7:* r", id="a rule for every minor"),
        pytest.param("c *:* rw", id="a rule for every device of the type"),
    ],
)
def test_a_rule_that_was_there_before_survives_grant_and_revoke(
    v1: Lab, vcsa: DeviceNode, own: str
) -> None:
    box = with_rules(v1, own)
    graft.place(box, [vcsa])
    before = rules(box.cgroup.path)
    earlier = graft.earlier(box, [vcsa.number])

    graft.permit(box, {vcsa.number: vcsa.access}, earlier=earlier)
    assert box.inside.can_open("/dev/vcsa", os.O_RDWR)

    graft.permit(box, {}, earlier=earlier)
    assert sorted(rules(box.cgroup.path).splitlines()) == sorted(before.splitlines())


def test_a_privileged_containers_rules_are_never_written_to(v1: Lab, vcsa: DeviceNode) -> None:
    box = v1.container(restrict=lambda _: None)
    graft.place(box, [vcsa])
    earlier = graft.earlier(box, [vcsa.number])
    assert earlier == {vcsa.number: Access.READ | Access.WRITE}
    graft.permit(box, {vcsa.number: vcsa.access}, earlier=earlier)
    graft.permit(box, {}, earlier=earlier)
    assert box.inside.can_open("/dev/vcsa", os.O_RDWR)  # a deny would not show in the list


def test_a_narrower_cgroup_in_a_privileged_container_is_left_alone(
    v1: Lab, vcsa: DeviceNode
) -> None:
    box = v1.container(restrict=lambda _: None)
    inner = box.cgroup.path / "service"
    v1.make(inner)
    (inner / "devices.deny").write_text("a")
    graft.permit(box, {vcsa.number: vcsa.access}, earlier={})
    assert rules(inner) == ""


def test_cgroups_below_the_containers_are_told_top_down(v1: Lab, vcsa: DeviceNode) -> None:
    box = v1.container(below="nested/deeper")
    (box.cgroup.path / "beside").mkdir()
    levels = [box.cgroup.path / below for below in ("", "beside", "nested", "nested/deeper")]
    earlier = graft.earlier(box, [vcsa.number])
    try:
        graft.permit(box, {vcsa.number: vcsa.access}, earlier=earlier)
        assert all("c 7:128 rw" in rules(level) for level in levels)
        graft.permit(box, {}, earlier=earlier)
        assert not any("c 7:128" in rules(level) for level in levels)
    finally:
        (box.cgroup.path / "beside").rmdir()


def test_an_ancestor_that_denies_is_named(v1: Lab, vcsa: DeviceNode) -> None:
    def restrict(cgroup: Path) -> None:
        v1.allow_null_only(cgroup)
        (cgroup.parent / "devices.deny").write_text("c 7:128 rw")

    box = v1.container(restrict=restrict)
    with pytest.raises(FilterBlocked) as caught:
        graft.permit(box, {vcsa.number: vcsa.access}, earlier={vcsa.number: Access.NONE})
    assert str(caught.value) == f"cgroup {box.cgroup.path.parent} denies c 7:128 rw"


def test_the_pods_own_rules_are_left_alone(v1: Lab, vcsa: DeviceNode) -> None:
    box = v1.container()
    before = rules(box.cgroup.path.parent)
    earlier = graft.earlier(box, [vcsa.number])
    graft.permit(box, {vcsa.number: vcsa.access}, earlier=earlier)
    graft.permit(box, {}, earlier=earlier)
    assert rules(box.cgroup.path.parent) == before == "a *:* rwm\n"
    assert "c *:* m" in rules(box.cgroup.path)
