# SPDX-License-Identifier: Apache-2.0
"""cgroup v2: the attached program wrapped in place, and the very same afterwards."""

import os
import threading
from pathlib import Path

import pytest

from devicemount_agent.errors import FilterBlocked
from devicemount_agent.graft import filter_v2, graft
from devicemount_agent.kernel import bpf
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import DeviceNode

from . import programs
from .containers import NULL, Box, Lab

PACE_S = 0.001  # a runtime needs about as long for it
ALLOW_NULL = programs.allow_list([NULL])


def ids(cgroup: Path) -> list[int]:
    return [info.id for info in programs.attached(cgroup)]


def grant(box: Box, *nodes: DeviceNode) -> None:
    graft.permit(box, {node.number: node.access for node in nodes}, earlier={})


def revoke(box: Box) -> None:
    graft.permit(box, {}, earlier={})


def test_the_program_is_replaced_by_one_of_ours_with_two_maps(v2: Lab, vcsa: DeviceNode) -> None:
    box = v2.container()
    grant(box, vcsa)
    (ours,) = programs.attached(box.cgroup.path)
    assert (ours.name, len(ours.map_ids)) == ("devicemount", 2)


def test_a_second_grant_changes_the_map_and_not_the_program(
    v2: Lab, vcsa: DeviceNode, vcsu: DeviceNode
) -> None:
    box = v2.container()
    grant(box, vcsa)
    first = ids(box.cgroup.path)
    grant(box, vcsa, vcsu)
    assert ids(box.cgroup.path) == first


def test_an_original_that_its_owner_keeps_is_attached_again_itself(
    v2: Lab, vcsa: DeviceNode
) -> None:
    box = v2.container()
    before = ids(box.cgroup.path)
    grant(box, vcsa)
    assert ids(box.cgroup.path) != before
    revoke(box)
    assert ids(box.cgroup.path) == before


def test_an_original_that_nobody_kept_is_loaded_again_with_name_and_instructions(
    v2: Lab, vcsa: DeviceNode
) -> None:
    box = v2.container(
        restrict=lambda cgroup: os.close(programs.attach(cgroup, ALLOW_NULL, name="sd_devices"))
    )
    (before,) = programs.attached(box.cgroup.path)
    grant(box, vcsa)
    revoke(box)
    (after,) = programs.attached(box.cgroup.path)
    assert (after.name, after.instructions) == (before.name, before.instructions)
    assert after.id != before.id


def test_an_original_that_its_owner_attached_again_meanwhile_is_not_attached_twice(
    v2: Lab, vcsa: DeviceNode
) -> None:
    kept: list[int] = []
    box = v2.container(
        restrict=lambda cgroup: kept.append(v2.keep(programs.attach(cgroup, ALLOW_NULL)))
    )
    before = ids(box.cgroup.path)
    grant(box, vcsa)
    programs.attach_again(box.cgroup.path, kept[0])
    revoke(box)
    assert ids(box.cgroup.path) == before


def test_each_of_several_programs_is_wrapped(v2: Lab, vcsa: DeviceNode) -> None:
    def restrict(cgroup: Path) -> None:
        for name in ("first", "second"):
            v2.keep(programs.attach(cgroup, ALLOW_NULL, name=name))

    box = v2.container(restrict=restrict)
    graft.place(box, [vcsa])
    before = ids(box.cgroup.path)
    grant(box, vcsa)
    assert box.inside.can_open("/dev/vcsa")
    revoke(box)
    assert not box.inside.can_open("/dev/vcsa")
    assert sorted(ids(box.cgroup.path)) == sorted(before)


def test_a_program_on_a_cgroup_below_is_wrapped_too(v2: Lab, vcsa: DeviceNode) -> None:
    def restrict(cgroup: Path) -> None:  # as crun 1.8 does it: nothing on the scope itself
        v2.make(cgroup / "container")
        v2.keep(programs.attach(cgroup / "container", ALLOW_NULL))

    box = v2.container(restrict=restrict, below="container")
    graft.place(box, [vcsa])
    assert not box.inside.can_open("/dev/vcsa")
    grant(box, vcsa)
    assert box.inside.can_open("/dev/vcsa")
    assert ids(box.cgroup.path) == []
    revoke(box)
    assert not box.inside.can_open("/dev/vcsa")


@pytest.mark.parametrize("flags", [0, bpf.BPF_F_ALLOW_OVERRIDE], ids=["alone", "override"])
def test_a_cgroup_that_holds_one_program_only_keeps_that_rule(
    v2: Lab, vcsa: DeviceNode, flags: int
) -> None:
    box = v2.container(
        restrict=lambda cgroup: (
            v2.keep(programs.attach_alone(cgroup, ALLOW_NULL, flags=flags)) and None
        )
    )
    graft.place(box, [vcsa])
    before = ids(box.cgroup.path)
    grant(box, vcsa)
    assert box.inside.can_open("/dev/vcsa")
    revoke(box)
    assert ids(box.cgroup.path) == before


def test_a_container_without_a_filter_is_left_alone(v2: Lab, vcsa: DeviceNode) -> None:
    box = v2.container(restrict=lambda _: None)
    grant(box, vcsa)
    assert ids(box.cgroup.path) == []


def test_a_privileged_containers_program_is_left_alone(v2: Lab, vcsa: DeviceNode) -> None:
    box = v2.container(
        restrict=lambda cgroup: v2.keep(programs.attach(cgroup, programs.allow_all())) and None
    )
    graft.place(box, [vcsa])
    before = ids(box.cgroup.path)
    grant(box, vcsa)
    assert ids(box.cgroup.path) == before
    assert box.inside.can_open("/dev/vcsa", os.O_RDWR)
    revoke(box)
    assert ids(box.cgroup.path) == before


def test_access_ends_though_the_saved_original_is_damaged(v2: Lab, vcsa: DeviceNode) -> None:
    box = v2.container()
    graft.place(box, [vcsa])
    grant(box, vcsa)
    programs.damage_original(box.cgroup.path)
    with pytest.raises(FilterBlocked, match="the saved original is damaged"):
        revoke(box)
    assert not box.inside.can_open("/dev/vcsa")


def test_a_program_that_calls_is_refused_by_name_and_stays(v2: Lab, vcsa: DeviceNode) -> None:
    box = v2.container(
        restrict=lambda cgroup: (
            v2.keep(programs.attach(cgroup, programs.calling(), name="vendor")) and None
        )
    )
    before = ids(box.cgroup.path)
    with pytest.raises(FilterBlocked) as caught:
        grant(box, vcsa)
    assert str(caught.value) == (
        f"device program {before[0]} (vendor) of {box.cgroup.path} cannot be replaced:"
        " it calls a function"
    )
    assert ids(box.cgroup.path) == before


def test_a_program_attached_by_a_link_is_refused_by_name_and_stays(
    v2: Lab, vcsa: DeviceNode
) -> None:
    box = v2.container(
        restrict=lambda cgroup: v2.keep(programs.attach_by_link(cgroup, ALLOW_NULL)) and None
    )
    before = ids(box.cgroup.path)
    with pytest.raises(FilterBlocked, match=r"\(linked\) of .* it is attached by a bpf_link"):
        grant(box, vcsa)
    assert ids(box.cgroup.path) == before


def test_nothing_is_wrapped_where_one_of_several_cannot_be(v2: Lab, vcsa: DeviceNode) -> None:
    def restrict(cgroup: Path) -> None:
        v2.keep(programs.attach(cgroup, ALLOW_NULL))
        v2.keep(programs.attach(cgroup, programs.calling()))

    box = v2.container(restrict=restrict)
    before = ids(box.cgroup.path)
    with pytest.raises(FilterBlocked):
        grant(box, vcsa)
    assert ids(box.cgroup.path) == before


def test_a_runtime_that_replaces_the_program_at_that_moment_loses_nothing(
    v2: Lab, vcsa: DeviceNode
) -> None:
    """As `crun update` does it, over and over, while grants come and go."""
    box = v2.container()
    graft.place(box, [vcsa])
    ended = threading.Event()

    def keep_replacing() -> None:
        with closing(os.open(box.cgroup.path, os.O_RDONLY | os.O_DIRECTORY)) as cgroup_fd:
            while not ended.wait(PACE_S):
                replace_whatever_is_attached(cgroup_fd)

    runtime = threading.Thread(target=keep_replacing)
    runtime.start()
    try:
        for _ in range(200):
            grant(box, vcsa)
            revoke(box)
    finally:
        ended.set()
        runtime.join()
    grant(box, vcsa)
    assert len(ids(box.cgroup.path)) == 1
    assert box.inside.can_open("/dev/vcsa")
    revoke(box)
    assert not box.inside.can_open("/dev/vcsa")


def replace_whatever_is_attached(cgroup_fd: int) -> None:
    query = bpf.prog_query(cgroup_fd)
    with closing(bpf.prog_load(ALLOW_NULL, is_gpl=False, name="")) as new_fd:
        try:
            with closing(bpf.prog_get_fd_by_id(query.program_ids[0])) as old_fd:
                bpf.prog_attach(cgroup_fd, new_fd, flags=query.flags, replaced_fd=old_fd)
        except FileNotFoundError:
            return  # we were faster


def test_what_the_container_had_opens_at_every_moment_of_grants_and_revokes(
    v2: Lab, vcsa: DeviceNode, vcsu: DeviceNode
) -> None:
    box = v2.container()
    os.mknod(box.root / "dev/null", 0o20666, os.makedev(1, 3))
    graft.place(box, [vcsu])
    ended = threading.Event()

    def keep_granting() -> None:
        while not ended.is_set():
            grant(box, vcsa)
            revoke(box)

    agent = threading.Thread(target=keep_granting)
    agent.start()
    try:
        for _ in range(1000):
            assert box.inside.can_open("/dev/null")
            assert not box.inside.can_open("/dev/vcsu")
    finally:
        ended.set()
        agent.join()


def test_a_filter_is_seen_where_it_is_attached(v2: Lab) -> None:
    box = v2.container()
    assert filter_v2.attached(box.cgroup.path)
    assert not filter_v2.attached(box.cgroup.path.parent)
