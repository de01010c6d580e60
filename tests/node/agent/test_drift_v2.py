# SPDX-License-Identifier: Apache-2.0
"""cgroup v2: what takes a grant away is seen, given back, and leaves nothing behind."""

import os
from collections.abc import Callable
from contextlib import closing as closed
from pathlib import Path

import pytest

from devicemount_agent.errors import FilterBlocked
from devicemount_agent.graft import graft, verify
from devicemount_agent.graft.standing import Eye, Standing
from devicemount_agent.graft.subtree import changed_below
from devicemount_agent.kernel import bpf
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import DeviceNode

from . import programs
from .containers import NULL, Box, Lab
from .wipers import PinningCrun, Systemd, crun_update

ROUNDS = 50
ALLOW_NULL = programs.allow_list([NULL])


def ids(cgroup: Path) -> list[int]:
    return [info.id for info in programs.attached(cgroup)]


def permit(box: Box, *nodes: DeviceNode) -> Standing:
    standing = graft.permit(box, {node.number: node.access for node in nodes}, earlier={})
    assert standing is not None
    return standing


def is_seen(standing: Standing) -> bool:
    with closed(Eye(standing, bpf.EffectivePrograms())) as eye:
        return not eye.is_as_it_stood()


def taken_and_given_back(box: Box, node: DeviceNode, standing: Standing) -> Standing:
    assert not box.inside.can_open(node.path)
    assert is_seen(standing)
    repaired = permit(box, node)
    assert repaired.was_made
    assert box.inside.can_open(node.path, os.O_RDWR)
    assert not is_seen(repaired)
    assert not permit(box, node).was_made
    return repaired


def test_a_program_that_is_loaded_is_the_newest(v2: Lab) -> None:
    known = bpf.newest_program(0)
    with closing(bpf.prog_load(ALLOW_NULL, is_gpl=False, name="")) as loaded:
        newest = bpf.newest_program(known)
        assert newest >= bpf.prog_info(loaded).id > known
    assert bpf.newest_program(newest) >= newest


def test_systemd_is_followed_without_end_and_both_programs_come_back(
    v2: Lab, vcsa: DeviceNode, vcsu: DeviceNode
) -> None:
    box = v2.container()
    (own,) = ids(box.cgroup.path)
    systemd = Systemd(v2, box.cgroup.path)
    graft.place(box, [vcsa, vcsu])
    standing = permit(box, vcsa)
    for _ in range(ROUNDS):
        systemd.reload()
        standing = taken_and_given_back(box, vcsa, standing)
        assert not box.inside.can_open("/dev/vcsu")
        assert len(ids(box.cgroup.path)) == 2
    permit(box)
    assert not box.inside.can_open("/dev/vcsa")
    (_, latest) = programs.attached(box.cgroup.path)
    assert ids(box.cgroup.path)[0] == own
    assert latest.name == "sd_devices"


def test_rules_that_systemd_has_changed_replace_its_former_ones(
    v2: Lab, vcsa: DeviceNode, vcsu: DeviceNode
) -> None:
    box = v2.container(restrict=lambda _: None)
    systemd = Systemd(v2, box.cgroup.path)
    systemd.reload()
    graft.place(box, [vcsa, vcsu])
    permit(box, vcsa)
    systemd.reload(vcsu.number)
    permit(box, vcsa)
    assert box.inside.can_open("/dev/vcsa")
    assert box.inside.can_open("/dev/vcsu")
    permit(box)
    assert box.inside.can_open("/dev/vcsu")
    assert [info.name for info in programs.attached(box.cgroup.path)] == ["sd_devices"]


def test_a_revoke_right_after_a_reload_leaves_what_systemd_attached(
    v2: Lab, vcsa: DeviceNode
) -> None:
    box = v2.container()
    (own,) = ids(box.cgroup.path)
    systemd = Systemd(v2, box.cgroup.path)
    permit(box, vcsa)
    systemd.reload()
    permit(box, vcsa)
    systemd.reload()
    latest = ids(box.cgroup.path)[-1]
    permit(box)
    assert sorted(ids(box.cgroup.path)) == sorted([own, latest])


def test_a_program_that_is_pinned_and_attached_again_stays_the_only_one(
    v2: Lab, vcsa: DeviceNode
) -> None:
    crun: list[PinningCrun] = []
    box = v2.container(restrict=lambda cgroup: crun.append(PinningCrun.start(v2, cgroup)))
    before = ids(box.cgroup.path)
    graft.place(box, [vcsa])
    standing = permit(box, vcsa)
    for _ in range(ROUNDS):
        crun[0].reload()
        standing = taken_and_given_back(box, vcsa, standing)
        assert len(ids(box.cgroup.path)) == 1
    permit(box)
    assert ids(box.cgroup.path) == before


def test_a_program_that_is_replaced_is_given_the_device_again(v2: Lab, vcsa: DeviceNode) -> None:
    box = v2.container()
    graft.place(box, [vcsa])
    standing = permit(box, vcsa)
    for _ in range(ROUNDS):
        crun_update(box.cgroup.path)
        standing = taken_and_given_back(box, vcsa, standing)
        assert len(ids(box.cgroup.path)) == 1
    permit(box)
    (after,) = programs.attached(box.cgroup.path)
    assert (after.instructions, after.is_gpl) == (ALLOW_NULL, True)


def test_two_alike_that_were_there_from_the_start_both_come_back(v2: Lab, vcsa: DeviceNode) -> None:
    def restrict(cgroup: Path) -> None:
        for _ in range(2):
            v2.keep(programs.attach(cgroup, ALLOW_NULL))

    box = v2.container(restrict=restrict)
    before = ids(box.cgroup.path)
    for _ in range(3):
        permit(box, vcsa)
    permit(box)
    assert ids(box.cgroup.path) == before


def test_a_repair_that_was_cut_short_is_brought_to_its_end(v2: Lab, vcsa: DeviceNode) -> None:
    box = v2.container()
    systemd = Systemd(v2, box.cgroup.path)
    graft.place(box, [vcsa])
    permit(box, vcsa)
    systemd.reload()
    permit(box, vcsa)
    systemd.reload()
    with closing(bpf.prog_get_fd_by_id(ids(box.cgroup.path)[1])) as former:
        programs.detach(box.cgroup.path, former)  # the newcomer is not wrapped yet
    assert not box.inside.can_open("/dev/vcsa")
    permit(box, vcsa)
    assert box.inside.can_open("/dev/vcsa")
    assert len(ids(box.cgroup.path)) == 2


# ---- other cgroups of the container


def test_a_cgroup_that_is_made_and_filtered_later_is_found(v2: Lab, vcsa: DeviceNode) -> None:
    box = v2.container()
    graft.place(box, [vcsa])
    standing = permit(box, vcsa)
    nested = box.cgroup.path / "nested/deeper"
    v2.make(nested)
    assert not changed_below(standing, nested)
    v2.keep(programs.attach(nested, ALLOW_NULL))
    assert changed_below(standing, nested)
    repaired = permit(box, vcsa)
    assert repaired.was_made
    assert not changed_below(repaired, nested)
    assert programs.attached(nested)[0].name == "devicemount"
    permit(box)
    assert programs.attached(nested)[0].name == ""


def test_how_a_privileged_container_restricts_parts_of_itself_is_left_alone(
    v2: Lab, vcsa: DeviceNode
) -> None:
    box = v2.container(
        restrict=lambda cgroup: v2.keep(programs.attach(cgroup, programs.allow_all())) and None
    )
    nested = box.cgroup.path / "service"
    v2.make(nested)
    v2.keep(programs.attach(nested, ALLOW_NULL))
    before = ids(nested)
    standing = permit(box, vcsa)
    assert ids(nested) == before
    assert not changed_below(standing, nested)
    assert not standing.was_made


def test_the_main_process_may_be_deeper(v2: Lab, vcsa: DeviceNode) -> None:
    """As crun places it, and systemd as a container's first process."""
    box = v2.container(below="init.scope")
    leaf = box.cgroup.path / "init.scope"
    v2.keep(programs.attach(leaf, ALLOW_NULL))
    graft.place(box, [vcsa])
    standing = permit(box, vcsa)
    assert standing.leaf == leaf
    crun_update(leaf)
    taken_and_given_back(box, vcsa, standing)


def test_more_cgroups_than_are_looked_at_do_not_keep_from_granting(
    v2: Lab, vcsa: DeviceNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devicemount_agent.graft.target.MAX_BELOW", 3)
    box = v2.container()
    graft.place(box, [vcsa])
    levels = [box.cgroup.path / f"tenant-{number}" for number in range(5)]
    for level in levels:
        v2.make(level)
        v2.keep(programs.attach(level, ALLOW_NULL))
    permit(box, vcsa)
    wrapped = [programs.attached(level)[0].name for level in levels].count("devicemount")
    assert wrapped == 3
    assert box.inside.can_open("/dev/vcsa")


# ---- what denies and is not ours to change


def test_an_ancestor_that_denies_later_is_seen_and_named(
    v2: Lab, vcsa: DeviceNode, hold: Path
) -> None:
    box = v2.container()
    standing = permit(box, vcsa)
    want = {vcsa.number: vcsa.access}
    verify.verify_access(box, want, hold=hold)
    denying = v2.keep(programs.attach(box.cgroup.path.parent, ALLOW_NULL))
    assert is_seen(standing)
    standing = permit(box, vcsa)
    with pytest.raises(FilterBlocked) as caught:
        verify.verify_access(box, want, hold=hold)
    assert str(caught.value) == (
        f"c 7:128 rw: EPERM, denied by the device filter of {box.cgroup.path.parent}"
    )
    programs.detach(box.cgroup.path.parent, denying)
    assert is_seen(standing)
    verify.verify_access(box, want, hold=hold)


def with_hardening(attach: Callable[[], int]) -> int:
    """Load a program while the JIT blinds constants: only that moment, it is the machine's."""
    knob = Path("/proc/sys/net/core/bpf_jit_harden")
    before = knob.read_text()
    knob.write_text("2")
    try:
        return attach()
    finally:
        knob.write_text(before)


def test_a_program_with_blinded_constants_is_refused_by_name(v2: Lab, vcsa: DeviceNode) -> None:
    def restrict(cgroup: Path) -> None:
        v2.keep(with_hardening(lambda: programs.attach(cgroup, ALLOW_NULL, name="hardened")))

    box = v2.container(restrict=restrict)
    before = ids(box.cgroup.path)
    with pytest.raises(FilterBlocked, match=r"\(hardened\) of .*net\.core\.bpf_jit_harden"):
        permit(box, vcsa)
    assert ids(box.cgroup.path) == before
