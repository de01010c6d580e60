# SPDX-License-Identifier: Apache-2.0
"""Who holds a device is found, however it is held, and said whose it is."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.container.runtimes import UNKNOWN, RuntimeFacts
from devicemount_agent.graft import graft
from devicemount_agent.holders.end import Ending, Terms
from devicemount_agent.holders.search import MOUNTED, Ask, Question, search, unsaid
from devicemount_agent.model import (
    Access,
    ContainerID,
    DeviceNode,
    DeviceNumber,
    Holder,
    PodUID,
)

from .containers import Actor, Box, Lab, actor
from .waiting import until

ZERO = DeviceNumber("c", 1, 5)


@dataclass(frozen=True)
class Said:
    """What the runtime says of a container."""

    permitted: frozenset[DeviceNumber] = frozenset()
    runtime: RuntimeFacts = UNKNOWN


@dataclass
class Mount:
    """A device granted to a container, and the two questions about it."""

    lab: Lab
    hold: Path
    box: Box
    numbers: frozenset[DeviceNumber]
    shadow: PodUID = field(default_factory=lambda: PodUID(str(uuid.uuid4())))
    granted: frozenset[tuple[ContainerID, DeviceNumber]] = frozenset()
    rules: Ask = unsaid

    def holders(self) -> tuple[Holder, ...]:
        """Return those in pods of this test; others on this machine have their own reasons."""
        return tuple(one for one in self.all_holders() if one.pod_uid in self.lab.pods)

    def all_holders(self) -> tuple[Holder, ...]:
        return tuple(sighting.holder for sighting in search(self.question()))

    def question(self) -> Question:
        return Question(
            self.numbers,
            target=self.box.pod_uid,
            shadow=self.shadow,
            granted=self.granted,
            hold=self.hold,
            cgroup_root=self.lab.root,
            rules=self.rules,
        )

    def holders_in(self, box: Box) -> tuple[Holder, ...]:
        return tuple(one for one in self.holders() if one.pod_uid == box.pod_uid)

    def kill(self) -> tuple[Holder, ...]:
        return self.end(Ending(), Terms(kill_at=0.0))

    def end(self, ending: Ending, terms: Terms) -> tuple[Holder, ...]:
        """Make one round; return who blocks still, in pods of this test."""
        left = (sighting.holder for sighting in ending.round(self.question(), terms))
        return tuple(one for one in left if one.blocking and one.pod_uid in self.lab.pods)


def granted(lab: Lab, hold: Path, *nodes: DeviceNode, pass_fds: tuple[int, ...] = ()) -> Mount:
    box = lab.container(pass_fds=pass_fds)
    give(box, *nodes)
    return Mount(lab, hold, box, frozenset(node.number for node in nodes))


def give(box: Box, *nodes: DeviceNode) -> None:
    graft.place(box, nodes)
    numbers = [node.number for node in nodes]
    want = {node.number: node.access for node in nodes}
    graft.permit(box, want, earlier=graft.earlier(box, numbers))


def holder(box: Box) -> Holder:
    return Holder(
        pid=box.init_pid,
        command=command_of(box.inside),
        pod_uid=box.pod_uid,
        container_id=box.id,
        blocking=True,
    )


def command_of(inside: Actor) -> str:
    return " ".join(map(str, inside.process.args[2:]))  # behind "unshare --mount"


@pytest.fixture
def zero() -> DeviceNode:
    return DeviceNode("/dev/zero", "/dev/zero", ZERO, Access.READ | Access.WRITE)


@pytest.fixture
def mount(either: Lab, hold: Path, vcsa: DeviceNode) -> Mount:
    return granted(either, hold, vcsa)


def test_nobody_holds_what_nobody_opened(mount: Mount) -> None:
    assert mount.holders() == ()


def test_an_open_descriptor_holds_until_it_is_closed(mount: Mount) -> None:
    fd = mount.box.inside.open("/dev/vcsa")
    assert mount.holders() == (holder(mount.box),)
    mount.box.inside.close(fd)
    assert mount.holders() == ()


def test_a_revoke_does_not_end_the_holding(mount: Mount) -> None:
    mount.box.inside.open("/dev/vcsa")
    graft.permit(mount.box, {}, earlier=dict.fromkeys(mount.numbers, Access.NONE))
    assert mount.holders() == (holder(mount.box),)


def test_a_descriptor_that_only_names_the_node_holds_nothing(mount: Mount) -> None:
    mount.box.inside.open("/dev/vcsa", os.O_PATH)
    assert mount.holders() == ()


def test_an_open_sibling_device_is_no_holder(
    mount: Mount, vcsa: DeviceNode, vcsu: DeviceNode
) -> None:
    give(mount.box, vcsa, vcsu)
    mount.box.inside.open("/dev/vcsu")
    assert mount.holders() == ()


def test_a_thread_with_a_descriptor_table_of_its_own_is_seen(mount: Mount) -> None:
    mount.box.inside.tell("open_in_thread", "/dev/vcsa")
    assert mount.holders() == (holder(mount.box),)


def test_it_is_found_among_many_threads_with_tables_of_their_own(mount: Mount) -> None:
    for _ in range(40):
        mount.box.inside.tell("open_in_thread", "/")
    mount.box.inside.tell("open_in_thread", "/dev/vcsa")
    assert mount.holders() == (holder(mount.box),)


def without_main_thread(box: Box) -> None:
    box.inside.tell("end_main_thread")
    status = Path(f"/proc/{box.init_pid}/status")
    until(lambda: "State:\tZ" in status.read_text(), what="the main thread has ended")


def test_a_process_whose_main_thread_has_ended_is_seen_as_its_containers(mount: Mount) -> None:
    mount.box.inside.open("/dev/vcsa")
    without_main_thread(mount.box)
    (found,) = mount.holders()
    assert (found.pod_uid, found.blocking) == (mount.box.pod_uid, True)
    assert mount.kill() == ()


def test_a_mapping_holds_after_the_descriptor_is_closed(
    v1: Lab, hold: Path, zero: DeviceNode
) -> None:
    mount = granted(v1, hold, zero)
    assert mount.holders_in(mount.box) == ()
    mount.box.inside.tell("map_file", "/dev/zero")
    assert mount.holders_in(mount.box) == (holder(mount.box),)
    without_main_thread(mount.box)
    assert [one.blocking for one in mount.holders_in(mount.box)] == [True]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DeviceNode]:
    """An ext4 file system on a loop device, which is detached afterwards."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    path = subprocess.run(
        ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True
    ).stdout.strip()
    found = Path(path).stat().st_rdev
    number = DeviceNumber("b", os.major(found), os.minor(found))
    try:
        yield DeviceNode(path, path, number, Access.READ | Access.WRITE)
    finally:
        subprocess.run(["losetup", "--detach", path], check=True)


def test_a_mounted_file_system_holds_its_block_device(
    either: Lab, hold: Path, disk: DeviceNode
) -> None:
    mount = granted(either, hold, disk)
    (mount.box.root / "dev/there").mkdir()
    mount.box.inside.tell("mount", disk.path, "/dev/there", "ext4", 0)
    assert mount.holders() == (replace(holder(mount.box), note=MOUNTED),)
    mount.box.inside.tell("unmount", "/dev/there")
    assert mount.holders() == ()


def test_a_process_of_the_node_is_named_and_does_not_block(mount: Mount) -> None:
    with actor() as outside:
        outside.open("/dev/vcsa")
        (found,) = (one for one in mount.all_holders() if one.pid == outside.pid)
    assert (found.pod_uid, found.container_id, found.blocking) == (None, None, False)


def test_a_container_that_may_open_it_anyway_does_not_block(mount: Mount, vcsa: DeviceNode) -> None:
    monitor = mount.lab.container(restrict=lambda _: None)
    graft.place(monitor, [vcsa])
    monitor.inside.open("/dev/vcsa")
    (found,) = mount.holders()
    assert (found.pod_uid, found.blocking) == (monitor.pod_uid, False)


def test_a_container_that_was_passed_a_descriptor_blocks(mount: Mount) -> None:
    passed = os.open("/dev/vcsa", os.O_RDONLY)
    try:
        other = mount.lab.container(pass_fds=(passed,))
    finally:
        os.close(passed)
    (found,) = mount.holders()
    assert found == holder(other)


def test_a_container_with_a_grant_of_its_own_is_no_holder_of_ours(
    mount: Mount, vcsa: DeviceNode
) -> None:
    other = mount.lab.container()
    give(other, vcsa)
    other.inside.open("/dev/vcsa")
    mount.granted = frozenset({(other.id, vcsa.number)})
    assert mount.holders() == ()


def test_a_holder_in_the_shadow_pod_blocks_though_it_may(mount: Mount, vcsa: DeviceNode) -> None:
    shadow = mount.lab.container(pod_uid=mount.shadow, restrict=lambda _: None)
    graft.place(shadow, [vcsa])
    shadow.inside.open("/dev/vcsa")
    assert mount.holders() == (holder(shadow),)


def test_another_container_of_the_target_pod_blocks(mount: Mount, vcsa: DeviceNode) -> None:
    sidecar = mount.lab.container(pod_uid=mount.box.pod_uid, restrict=lambda _: None)
    graft.place(sidecar, [vcsa])
    sidecar.inside.open("/dev/vcsa")
    assert mount.holders() == (holder(sidecar),)


def test_another_container_of_the_target_pod_keeps_what_it_was_allocated_itself(
    mount: Mount, vcsa: DeviceNode, vcsu: DeviceNode
) -> None:
    sidecar = mount.lab.container(pod_uid=mount.box.pod_uid, restrict=lambda _: None)
    graft.place(sidecar, [vcsa])
    fd = sidecar.inside.open("/dev/vcsa")
    said = {sidecar.id: Said(frozenset({vcsa.number}))}
    mount.rules = said.get
    assert mount.holders() == ()
    said[sidecar.id] = Said(frozenset({vcsu.number}))
    assert mount.holders() == (holder(sidecar),)
    sidecar.inside.close(fd)


def test_killing_ends_exactly_the_holders_that_block(mount: Mount, vcsa: DeviceNode) -> None:
    bystander = mount.lab.container(pod_uid=mount.box.pod_uid)
    monitor = mount.lab.container(restrict=lambda _: None)
    graft.place(monitor, [vcsa])
    with actor() as outside:
        for inside in (mount.box.inside, monitor.inside, outside):
            inside.open("/dev/vcsa")
        assert mount.kill() == ()
        until(lambda: mount.box.inside.process.poll() is not None, what="the holder ended")
        assert mount.box.inside.process.returncode == -9
        assert outside.process.poll() is None
    assert bystander.inside.process.poll() is None
    assert monitor.inside.process.poll() is None


def test_killing_with_nobody_there_is_done(mount: Mount) -> None:
    assert mount.kill() == ()


def test_who_survives_the_deadline_is_named(
    v1: Lab, hold: Path, vcsa: DeviceNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On cgroup v1 a frozen process does not die before it is thawed."""
    monkeypatch.setattr("devicemount_agent.holders.end.DEADLINE_S", 0.1)
    mount = granted(v1, hold, vcsa)
    mount.box.inside.open("/dev/vcsa")
    freezer = Path("/sys/fs/cgroup/freezer") / v1.top.name
    freezer.mkdir()
    try:
        (freezer / "cgroup.procs").write_text(str(mount.box.init_pid))
        (freezer / "freezer.state").write_text("FROZEN")
        until(lambda: (freezer / "freezer.state").read_text() == "FROZEN\n", what="frozen")
        assert [one.pid for one in mount.kill()] == [mount.box.init_pid]
    finally:
        (freezer / "freezer.state").write_text("THAWED")
        mount.box.inside.process.kill()
        mount.box.inside.process.wait()
        freezer.rmdir()


def test_the_pid_is_the_one_that_the_container_knows(v1: Lab, hold: Path, vcsa: DeviceNode) -> None:
    mount = granted(v1, hold, vcsa)
    with Path("/dev/vcsa").open("rb") as device:
        process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "sleep", "60"],
            stdin=device,
        )
    try:
        until(
            lambda: {one.command: one.pid for one in mount.all_holders()}.get("sleep 60") == 1,
            what="sleep is found as pid 1 of its namespace",
        )
    finally:
        process.kill()
        process.wait()
    assert mount.lab.version is CgroupVersion.V1
