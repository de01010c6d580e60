# SPDX-License-Identifier: Apache-2.0
"""A journal that was damaged, cut, of another boot, or on a full disk: what was granted is found in
the kernel and in what kubelet and runtime say; until all of it is explained nothing is granted.
"""

import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from devicemount_agent import rebuild
from devicemount_agent.allocation.read import Allocation
from devicemount_agent.container.cgroup import (
    CGROUP_ROOT,
    Cgroup,
    CgroupVersion,
    every_container,
)
from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.graft import graft
from devicemount_agent.holders import search
from devicemount_agent.kernel.files import closing
from devicemount_agent.ledger import Removed
from devicemount_agent.model import PodUID
from devicemount_agent_api.v1 import agent_pb2 as pb
from node.agent.containers import Lab

from .conftest import DEADLINE_S, Node, Shadow, Target
from .test_drift import ON_V2, hierarchy
from .test_mount import can_open, until
from .test_recovery import readiness, ready
from .test_terminate import LATER_S, holders, inside

__all__ = ["hierarchy"]

ON_V1 = pytest.mark.parametrize("hierarchy", [CgroupVersion.V1], indirect=True, ids=["v1"])


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "AGAIN_S", 0.05)


@pytest.fixture(autouse=True)
def seen_there(hierarchy: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds a device, and which programs there are, is told by the cgroups of this lab."""
    former = search.Question.__init__.__defaults__
    assert former
    of_lab = tuple(hierarchy.root if one == CGROUP_ROOT else one for one in former)
    monkeypatch.setattr(search.Question.__init__, "__defaults__", of_lab)
    monkeypatch.setitem(rebuild.Rebuild.__init__.__kwdefaults__, "cgroup_root", hierarchy.root)

    def containers() -> Iterator[Cgroup]:
        return (one for one in every_container() if one.path.is_relative_to(hierarchy.top))

    monkeypatch.setattr(rebuild, "every_container", containers)


def alive(node: Node, target: Target, shadow: Shadow) -> Shadow:
    """The shadow pod has its sandbox, as the operator and the kubelet make it."""
    shadow.pod.labels["devicemount.io/shadow"] = target.mount_uid
    shadow.pod.annotations["devicemount.io/mount"] = "notebook-gpu"
    shadow.pod.annotations["devicemount.io/target-uid"] = target.pod.uid
    node.runtime.sandboxes.append(shadow.pod)
    return shadow


async def granted(node: Node, name: str, device: str) -> tuple[Target, Shadow]:
    target = node.target(name)
    shadow = alive(node, target, node.reserved(target, device))
    assert (await node.apply(target, shadow)).phase == pb.GRANTED
    return target, shadow


def spoil(node: Node, what: bytes) -> None:
    """Change a letter of the last line that holds it."""
    journal = node.settings.journal_directory / "journal"
    lines = journal.read_bytes().split(b"\n")
    last = max(at for at, line in enumerate(lines) if what in line)
    lines[last] = lines[last].replace(what, what.swapcase())
    journal.write_bytes(b"\n".join(lines))


def cut(node: Node, *, lines: int) -> None:
    journal = node.settings.journal_directory / "journal"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:lines]))


def is_damage_kept(node: Node) -> bool:
    return (node.settings.journal_directory / "journal.damaged").exists()


async def test_what_reservation_and_kernel_confirm_goes_on(node: Node) -> None:
    async with node.agent():
        target, _ = await granted(node, "notebook-0", "vcs1")
        before = (await node.states())[0].granted_unix_ns
    fd = target.box.inside.open("/dev/vcs1")
    spoil(node, b"commit")

    async with node.agent():
        await until(lambda: is_damage_kept(node), "rebuilt")
        assert await ready(node) == 200
        (state,) = await node.states()
        assert state.phase == pb.GRANTED
        assert state.granted_unix_ns >= before
        assert can_open(target, "vcs1")
        assert (await node.remove(target)).phase == pb.BUSY
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED
        assert not can_open(target, "vcs1")
        await granted(node, "another-0", "vcsa1")


@pytest.mark.parametrize("lines", [0, 1], ids=["empty", "only a header"])
async def test_a_grant_without_a_record_is_found_by_its_reservation(node: Node, lines: int) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcs1")
    fd = target.box.inside.open("/dev/vcs1")
    cut(node, lines=lines)

    async with node.agent():
        await until(lambda: is_damage_kept(node), "rebuilt")
        (state,) = await node.states()
        assert (state.phase, state.key) == (pb.GRANTED, target.key)
        assert [s.uid for s in state.shadow_pods] == [shadow.pod.uid]
        assert (await node.remove(target)).phase == pb.BUSY
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED
        assert not can_open(target, "vcs1")
        assert not (target.box.root / "dev/vcs1").exists()


async def test_a_removal_that_was_cut_off_is_not_undone(node: Node) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcs1")
        assert (await node.remove(target)).phase == pb.REMOVED
    node.runtime.sandboxes.remove(shadow.pod)
    node.kubelet.forget(shadow.pod)
    spoil(node, b"removed")

    async with node.agent():
        await until(lambda: is_damage_kept(node), "rebuilt")
        assert not can_open(target, "vcs1")
        assert target.box.inside.process.poll() is None
        assert [s.phase for s in await node.states()] in ([], [pb.LOST_PHASE])
        assert await ready(node) == 200


async def test_a_grant_whose_reservation_went_meanwhile_is_a_loss(node: Node) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcs1")
    target.box.inside.open("/dev/vcs1")
    node.runtime.sandboxes.remove(shadow.pod)
    node.kubelet.forget(shadow.pod)
    spoil(node, b"commit")

    async with node.agent():
        await until(lambda: target.box.inside.process.poll() == -9, "killed")


@ON_V1
async def test_what_nothing_explains_keeps_it_from_granting_until_its_container_ends(
    node: Node,
) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcs1")
    node.runtime.sandboxes.remove(shadow.pod)
    node.kubelet.forget(shadow.pod)
    cut(node, lines=1)

    async with node.agent():
        status, amiss = await readiness(node)
        assert status == 503
        assert "bytes are missing at its end" in amiss
        assert "team-a/notebook-0/notebook may use c 7:1; its end does" in amiss
        other = node.target("other-0")
        reserved = alive(node, other, node.reserved(other, "vcsa1"))
        with pytest.raises(grpc.aio.AioRpcError, match="damaged, nothing is granted"):
            await node.apply(other, reserved)
        with pytest.raises(grpc.aio.AioRpcError, match="the journal is damaged"):
            await node.remove(target)

        node.runtime.containers[target.box.id].is_running = False
        target.box.inside.process.kill()
        await until(lambda: is_damage_kept(node), "rebuilt")
        assert (await node.apply(other, reserved)).phase == pb.GRANTED
        assert await ready(node) == 200


@ON_V1
async def test_what_the_runtime_was_told_to_allow_needs_no_record(node: Node) -> None:
    async with node.agent():
        await granted(node, "notebook-0", "vcsa1")
    own = node.target("own-0")
    (own.box.cgroup.path / "devices.allow").write_text("c 7:1 rw")
    node.runtime.containers[own.box.id].permitted = [("c", 7, 1)]
    spoil(node, b"commit")

    async with node.agent():
        await until(lambda: is_damage_kept(node), "rebuilt")
        assert "c 7:1 rw" in (own.box.cgroup.path / "devices.list").read_text()
        assert await ready(node) == 200


async def test_after_a_boot_nothing_is_granted_and_all_can_be(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcs1")
    booted = node.restarted(target)
    monkeypatch.setattr("devicemount_agent.__main__.boot_id", lambda: "another-boot")

    async with node.agent():
        assert await node.states() == []
        assert await ready(node) == 200
        assert (await node.apply(booted, shadow)).phase == pb.GRANTED
        assert can_open(booted, "vcs1")
        assert (await node.remove(booted)).phase == pb.REMOVED


def lose_journal(node: Node) -> None:
    """Somebody removes its directory, or gives the agent another one."""
    shutil.rmtree(node.settings.journal_directory)


async def test_a_grant_whose_journal_is_gone_is_found_by_its_reservation(node: Node) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcs1")
    before = graft.allowed(target.box)
    fd = target.box.inside.open("/dev/vcs1")
    lose_journal(node)

    async with node.agent():
        (state,) = await node.states()
        assert (state.phase, state.key) == (pb.GRANTED, target.key)
        assert [s.uid for s in state.shadow_pods] == [shadow.pod.uid]
        assert graft.allowed(target.box) == before
        assert (await node.remove(target)).phase == pb.BUSY
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED
        assert not can_open(target, "vcs1")
        assert await ready(node) == 200


async def test_what_was_revoked_and_is_held_still_is_found_by_its_holder(node: Node) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcsu1")
        fd = target.box.inside.open("/dev/vcsu1")
        asked = await node.remove(target, policy=pb.TERMINATE, grace_s=LATER_S)
        assert (asked.phase, can_open(target, "vcsu1")) == (pb.BUSY, False)
    lose_journal(node)

    for _ in ("rebuilt", "recovered"):
        async with node.agent():
            assert [state.phase for state in await node.states()] == [pb.WAITING]
            assert not can_open(target, "vcsu1")
    async with node.agent():
        busy = await node.remove(target)
        assert (busy.phase, list(holders(busy))) == (pb.WAITING, [inside(target).pid])
        assert not can_open(target, "vcsu1")
        assert [s.uid for s in busy.shadow_pods] == [shadow.pod.uid]
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED
        assert not can_open(target, "vcsu1")
        assert not (target.box.root / "dev/vcsu1").exists()
        assert await ready(node) == 200


async def test_what_was_revoked_and_is_held_still_can_be_granted_again(node: Node) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcsu1")
        fd = target.box.inside.open("/dev/vcsu1")
        await node.remove(target, policy=pb.TERMINATE, grace_s=LATER_S)
    lose_journal(node)

    async with node.agent():
        assert (await node.apply(target, shadow)).phase == pb.GRANTED
        assert can_open(target, "vcsu1")
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED
        assert not (target.box.root / "dev/vcsu1").exists()


async def test_who_holds_what_was_revoked_is_not_forgotten_by_an_attempt_that_fails(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcsu1")
        fd = target.box.inside.open("/dev/vcsu1")
        await node.remove(target, policy=pb.TERMINATE, grace_s=LATER_S)
    lose_journal(node)

    async def unproven(*_: object, **__: object) -> None:
        raise NodeUnavailable("the kubelet does not answer")

    monkeypatch.setattr(Allocation, "proven", unproven)
    async with node.agent():
        with pytest.raises(grpc.aio.AioRpcError, match="the kubelet does not answer"):
            await node.apply(target, shadow)
        busy = await node.remove(target)
        assert (busy.phase, list(holders(busy))) == (pb.WAITING, [inside(target).pid])
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED


@ON_V1
async def test_what_is_held_while_its_target_does_not_run_keeps_it_from_granting(
    node: Node,
) -> None:
    async with node.agent():
        target, _ = await granted(node, "notebook-0", "vcsu1")
        fd = target.box.inside.open("/dev/vcsu1")
        await node.remove(target, policy=pb.TERMINATE, grace_s=LATER_S)
    lose_journal(node)
    node.runtime.containers[target.box.id].is_running = False

    async with node.agent():
        assert "whose target does not run" in (await readiness(node))[1]
        target.box.inside.close(fd)
        await until(lambda: is_damage_kept(node), "rebuilt")
        assert await node.states() == []


async def test_a_reservation_that_nobody_used_is_no_grant(node: Node) -> None:
    async with node.agent():
        target = node.target("notebook-0")
        shadow = alive(node, target, node.reserved(target, "vcsu1"))
    lose_journal(node)

    async with node.agent():
        assert await node.states() == []
        assert await ready(node) == 200
        assert (await node.apply(target, shadow)).phase == pb.GRANTED


@ON_V1
async def test_a_search_without_end_keeps_no_agent_from_its_start(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = node.target("notebook-0")
    shadow = alive(node, target, node.reserved(target, "vcsu1"))
    answers = threading.Event()
    find = search.find

    def late(question: search.Question) -> Iterator[search.Found]:
        answers.wait(DEADLINE_S)
        return find(question)

    monkeypatch.setattr(rebuild, "SEARCH_S", 0.1)
    monkeypatch.setattr(search, "find", late)
    async with node.agent():
        status, amiss = await readiness(node)
        assert status == 503
        assert "the search for who has c 7:65: " in amiss
        answers.set()
        await until(lambda: is_damage_kept(node), "rebuilt")
        assert (await node.apply(target, shadow)).phase == pb.GRANTED


async def test_who_was_handed_a_device_is_not_taken_for_the_target(node: Node) -> None:
    async with node.agent():
        target = node.target("notebook-0")
        with closing(os.open("/dev/vcsu1", os.O_RDONLY)) as fd:
            sidecar = node.beside(target, pass_fds=(fd,))
        shadow = alive(node, target, node.reserved(target, "vcsu1"))
        assert (await node.apply(target, shadow)).phase == pb.GRANTED
    lose_journal(node)
    first = node.runtime.containers.pop(target.box.id)
    node.runtime.containers[target.box.id] = first  # the other container is looked at before

    async with node.agent():
        (state,) = await node.states()
        assert (state.phase, state.container_id) == (pb.GRANTED, target.box.id)
        assert can_open(target, "vcsu1")
        assert list(holders(await node.remove(target))) == [sidecar.pid]


@ON_V1
async def test_what_the_container_could_do_before_a_revoked_grant_it_can_do_after(
    node: Node,
) -> None:
    target = node.target("notebook-0")
    rules = target.box.cgroup.path / "devices.list"
    (target.box.cgroup.path / "devices.allow").write_text("c 7:1 r")
    node.runtime.containers[target.box.id].permitted = [("c", 7, 1)]
    shadow = alive(node, target, node.reserved(target, "vcs1", "vcsu1"))
    async with node.agent():
        assert (await node.apply(target, shadow)).phase == pb.GRANTED
        fd = target.box.inside.open("/dev/vcsu1")
        assert (await node.remove(target, policy=pb.TERMINATE)).phase == pb.BUSY
    lose_journal(node)

    async with node.agent():
        assert "c 7:1 r\n" in rules.read_text()
        assert list(holders(await node.remove(target))) == [inside(target).pid]
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED
        assert "c 7:1 r\n" in rules.read_text()
        assert "c 7:65" not in rules.read_text()


@ON_V2
async def test_a_program_of_ours_tells_that_there_was_a_journal(node: Node) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcs1")
    node.runtime.sandboxes.remove(shadow.pod)
    node.kubelet.forget(shadow.pod)
    lose_journal(node)

    async with node.agent():
        assert not can_open(target, "vcs1")
        assert graft.allowed(target.box) == frozenset()
        assert await ready(node) == 200


@ON_V1
async def test_what_others_have_by_themselves_does_not_delay_the_first_grant(node: Node) -> None:
    own = node.target("own-0")
    (own.box.cgroup.path / "devices.allow").write_text("c 7:1 rw")
    target = node.target("notebook-0")
    (target.box.cgroup.path / "devices.allow").write_text("c 7:2 rw")  # as NVIDIA's hook does
    shadow = alive(node, target, node.reserved(target, "vcsa1"))

    async with node.agent():
        assert (await node.apply(target, shadow)).phase == pb.GRANTED
        assert await ready(node) == 200
        assert (await node.remove(target)).phase == pb.REMOVED
    assert "c 7:1 rw" in (own.box.cgroup.path / "devices.list").read_text()
    assert "c 7:2 rw" in (target.box.cgroup.path / "devices.list").read_text()


async def test_a_first_start_asks_no_container_and_keeps_nothing_aside(node: Node) -> None:
    node.target()
    async with node.agent():
        assert await ready(node) == 200
    async with node.agent():
        assert await ready(node) == 200
    assert node.runtime.asked == 0
    assert not is_damage_kept(node)


@ON_V2
async def test_what_is_held_and_nothing_reserves_keeps_it_from_granting(node: Node) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcs1")
    fd = target.box.inside.open("/dev/vcs1")
    node.runtime.sandboxes.remove(shadow.pod)
    node.kubelet.forget(shadow.pod)
    lose_journal(node)
    async with node.agent():
        asked = node.runtime.asked
        await until(lambda: node.runtime.asked > asked + 2, "looked at again and again")
        assert "no journal of this boot" in (await readiness(node))[1]
        assert not can_open(target, "vcs1")
        with pytest.raises(grpc.aio.AioRpcError, match="damaged"):
            await node.remove(target)
        target.box.inside.close(fd)
        await until(lambda: is_damage_kept(node), "rebuilt")
        assert await ready(node) == 200


@pytest.fixture
def small_disk(node: Node) -> Iterator[Path]:
    """The journal's file system, of which a few pages are left after some grants."""
    directory = node.settings.journal_directory
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "journal", directory], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def fill(directory: Path) -> Path:
    """Write until nothing more fits."""
    path = directory / "filler"
    with path.open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    return path


async def refused_for_want_of_room(
    node: Node, target: Target, shadow: Shadow, *, times: int
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="no room for the journal"):
        for _ in range(20):  # a page of the file has some room still
            await node.apply(target, shadow)
            await node.remove(target)
    for _ in range(times):
        with pytest.raises(grpc.aio.AioRpcError, match="no room for the journal"):
            await node.apply(target, shadow)


@ON_V1
async def test_a_full_disk_refuses_grants_and_lets_go_of_them(node: Node, small_disk: Path) -> None:
    async with node.agent():
        target, _ = await granted(node, "notebook-0", "vcs1")
        filler = fill(small_disk)
        other = node.target("other-0")
        reserved = alive(node, other, node.reserved(other, "vcsa1"))
        await refused_for_want_of_room(node, other, reserved, times=20)
        assert can_open(target, "vcs1")
        assert (await node.remove(target)).phase == pb.REMOVED
        assert not can_open(target, "vcs1")
        filler.unlink()
        assert (await node.apply(other, reserved)).phase == pb.GRANTED

    async with node.agent():
        (state,) = await node.states()
        assert (state.phase, state.key) == (pb.GRANTED, other.key)


@ON_V1
async def test_refused_grants_use_up_no_room_for_removals(node: Node, small_disk: Path) -> None:
    async with node.agent():
        target, _ = await granted(node, "notebook-0", "vcs1")
        fill(small_disk)
        other = node.target("other-0")
        reserved = alive(node, other, node.reserved(other, "vcsa1"))
        fd = target.box.inside.open("/dev/vcs1")
        await refused_for_want_of_room(node, other, reserved, times=300)
        assert (await node.remove(target)).phase == pb.BUSY
        target.box.inside.close(fd)
        assert (await node.remove(target)).phase == pb.REMOVED
    assert not can_open(target, "vcs1")


@ON_V1
async def test_room_for_removals_is_kept_over_a_restart(node: Node, small_disk: Path) -> None:
    async with node.agent():
        target, shadow = await granted(node, "notebook-0", "vcs1")
    async with node.agent() as agent:
        fill(small_disk)
        for number in range(200):
            agent.journal.append(Removed(PodUID(f"{shadow.pod.uid}-{number}")))
        assert (await node.remove(target)).phase == pb.REMOVED


@ON_V1
async def test_an_agent_starts_on_a_full_disk(node: Node, small_disk: Path) -> None:
    async with node.agent():
        target, _ = await granted(node, "notebook-0", "vcs1")
    fill(small_disk)
    async with node.agent():
        assert [state.phase for state in await node.states()] == [pb.GRANTED]
        assert (await node.remove(target)).phase == pb.REMOVED
        assert not can_open(target, "vcs1")


async def named(node: Node, box: Target, name: str, device: str) -> Target:
    """Grant one more mount in a container, under a name of its own."""
    target = Target(box.pod, box.box, mount_uid=str(uuid.uuid4()))
    shadow = alive(node, target, node.reserved(target, device))
    shadow.pod.annotations["devicemount.io/mount"] = name
    request = node.apply_request(target, shadow)
    request.mount_name = name
    assert (await node.stub.Apply(request, timeout=DEADLINE_S)).phase == pb.GRANTED
    return target


def shown(box: Target) -> set[str] | None:
    """Return which files the container sees in /run/devicemount; None: there is no directory."""
    directory = box.box.root / "run/devicemount"
    return {path.name for path in directory.iterdir()} if directory.is_dir() else None


def cut_to_header(node: Node) -> None:
    cut(node, lines=1)


@ON_V1
@pytest.mark.parametrize("damage", [cut_to_header, lose_journal], ids=["cut", "gone"])
async def test_ready_files_are_true_after_a_rebuild(
    node: Node, damage: Callable[[Node], None]
) -> None:
    box = node.target()
    async with node.agent():
        one = await named(node, box, "one", "vcs1")
        two = await named(node, box, "two", "vcsa1")
    damage(node)

    async with node.agent():
        assert shown(box) == {"one.ready", "two.ready"}
        assert not any(state.incomplete for state in await node.states())
        assert (await node.remove(one)).phase == pb.REMOVED
        assert shown(box) == {"two.ready"}
        three = await named(node, box, "three", "vcsu1")
        assert shown(box) == {"two.ready", "three.ready"}
        for last in (two, three):
            assert (await node.remove(last)).phase == pb.REMOVED
        assert shown(box) is None
        await named(node, box, "four", "vcs1")
        assert shown(box) == {"four.ready"}


@ON_V1
async def test_while_a_journal_is_damaged_no_files_are_forgotten(node: Node) -> None:
    async with node.agent():
        box = node.target()
        one = await named(node, box, "one", "vcs1")
        other, shadow = await granted(node, "other-0", "vcsa1")
    node.runtime.sandboxes.remove(shadow.pod)
    node.kubelet.forget(shadow.pod)
    cut(node, lines=1)

    async with node.agent():
        assert "team-a/other-0/notebook may use" in (await readiness(node))[1]
        assert shown(box) == {"one.ready"}
        node.runtime.containers[other.box.id].is_running = False
        other.box.inside.process.kill()
        await until(lambda: is_damage_kept(node), "rebuilt")
        assert await ready(node) == 200
        assert (await node.remove(one)).phase == pb.REMOVED
        assert shown(box) is None


@ON_V1
async def test_what_a_tenant_put_over_its_files_does_not_keep_a_journal_damaged(
    node: Node,
) -> None:
    box = node.target()
    async with node.agent():
        one = await named(node, box, "one", "vcs1")
    (box.box.root / "run/devicemount").parent.rename(box.box.root / "moved")
    (box.box.root / "run").symlink_to("run")
    cut(node, lines=1)

    async with node.agent():
        assert await ready(node) == 200
        assert [state.phase for state in await node.states()] == [pb.GRANTED]
        assert (await node.remove(one)).phase == pb.REMOVED
        assert not can_open(box, "vcs1")
