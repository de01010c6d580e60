# SPDX-License-Identifier: Apache-2.0
"""Nodes are made in the container's own /dev only, and what is removed is what was made."""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

import vendor_answers as vendors
from devicemount_agent.errors import NotAllowed, PathConflict, UnsupportedRuntime
from devicemount_agent.graft import graft
from devicemount_agent.graft.places import Places
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import DeviceNode, DeviceNumber

from .containers import Box, Lab
from .waiting import DEADLINE_S

ATTEMPTS = 500


@pytest.fixture
def box(v1: Lab) -> Box:
    return v1.container()


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def moved(node: DeviceNode, path: str) -> DeviceNode:
    return replace(node, path=path)


def make_node(path: Path, number: DeviceNumber) -> None:
    os.mknod(path, 0o20600, os.makedev(number.major, number.minor))


def test_a_node_is_made_and_removed(box: Box, vcsa: DeviceNode) -> None:
    made = graft.place(box, [vcsa])
    assert made == {"/dev/vcsa"}
    found = os.lstat(box.root / "dev/vcsa")
    assert stat.S_ISCHR(found.st_mode)
    assert found.st_rdev == os.makedev(7, 128)
    graft.displace(box, [vcsa], made)
    assert names(box.root / "dev") == []


def test_a_block_node_is_one(box: Box) -> None:
    number = DeviceNumber("b", 7, 0)
    node = DeviceNode("/dev/loop0", "/dev/loop0", number, access=graft.Access.READ)
    graft.place(box, [node])
    assert stat.S_ISBLK(os.lstat(box.root / "dev/loop0").st_mode)


def test_doing_it_twice_is_as_once(box: Box, vcsa: DeviceNode) -> None:
    made = graft.place(box, [vcsa])
    assert graft.place(box, [vcsa]) == frozenset()
    for _ in range(2):
        graft.displace(box, [vcsa], made)
    assert names(box.root / "dev") == []


def test_missing_directories_are_made_and_go_with_their_node(box: Box, vcsa: DeviceNode) -> None:
    node = moved(vcsa, "/dev/a/b/vcsa")
    assert graft.missing(Places(box), [node]) == {"/dev/a", "/dev/a/b", "/dev/a/b/vcsa"}
    made = graft.place(box, [node])
    assert made == {"/dev/a", "/dev/a/b", "/dev/a/b/vcsa"}
    assert stat.S_IMODE((box.root / "dev/a").stat().st_mode) == 0o755
    graft.displace(box, [node], made)
    assert names(box.root / "dev") == []


def test_a_directory_with_somebody_elses_file_stays(box: Box, vcsa: DeviceNode) -> None:
    node = moved(vcsa, "/dev/a/vcsa")
    made = graft.place(box, [node])
    (box.root / "dev/a/other").touch()
    graft.displace(box, [node], made)
    assert names(box.root / "dev/a") == ["other"]


def test_what_is_missing_is_what_would_be_made(box: Box, vcsa: DeviceNode) -> None:
    (box.root / "dev/a").mkdir()
    nodes = [vcsa, moved(vcsa, "/dev/a/b/vcsa")]
    missing = graft.missing(Places(box), nodes)
    assert missing == graft.place(box, nodes)
    assert graft.missing(Places(box), nodes) == frozenset()


def test_a_node_that_is_there_is_left_and_not_ours(box: Box, vcsa: DeviceNode) -> None:
    make_node(box.root / "dev/vcsa", vcsa.number)
    (box.root / "dev/vcsa").chmod(0o644)
    made = graft.place(box, [vcsa])
    assert made == frozenset()
    graft.displace(box, [vcsa], made)
    assert stat.S_IMODE(os.lstat(box.root / "dev/vcsa").st_mode) == 0o644


@pytest.mark.parametrize(
    ("stands", "said"),
    [
        pytest.param(lambda p: make_node(p, DeviceNumber("c", 7, 64)), "c 7:64", id="number"),
        pytest.param(lambda p: os.mknod(p, 0o60600, os.makedev(7, 128)), "b 7:128", id="kind"),
        pytest.param(lambda p: p.touch(), "- 0:0", id="file"),
        pytest.param(lambda p: p.mkdir(), "d 0:0", id="directory"),
        pytest.param(os.mkfifo, "p 0:0", id="fifo"),
        pytest.param(lambda p: p.symlink_to("/dev/null"), "l 0:0", id="symlink"),
    ],
)
def test_another_thing_at_the_path_is_a_conflict(
    box: Box, vcsa: DeviceNode, vcsu: DeviceNode, stands, said: str
) -> None:
    stands(box.root / "dev/vcsa")
    with pytest.raises(PathConflict) as caught:
        graft.place(box, [vcsu, vcsa])
    assert str(caught.value) == f"something else stands at /dev/vcsa: {said}"
    assert names(box.root / "dev") == ["vcsa"]


@pytest.mark.parametrize(
    "case", [c for c in vendors.cases() if c.refusal and c.refusal.is_at_graft], ids=str
)
def test_what_a_vendor_calls_alike_in_every_container_conflicts_with_itself(
    box: Box, vcsa: DeviceNode, case: vendors.Case
) -> None:
    paths = [spec["container_path"] for entry in case.entries for spec in entry.answer["devices"]]
    nodes = [moved(vcsa, path) for path in paths]
    taken = [path for path in paths if path in case.expected["unsupported_reason"]]
    assert case.refusal and case.refusal.reason == PathConflict.__name__
    for path in taken:
        make_node(box.root / path.lstrip("/"), DeviceNumber("c", 7, 64))
    with pytest.raises(PathConflict, match=f"something else stands at {taken[0]}: c 7:64"):
        graft.place(box, nodes)
    assert names(box.root / "dev") == [Path(path).name for path in taken]


def test_what_was_put_in_our_nodes_place_is_not_removed(box: Box, vcsa: DeviceNode) -> None:
    made = graft.place(box, [vcsa])
    (box.root / "dev/vcsa").unlink()
    (box.root / "dev/vcsa").write_text("mine")
    graft.displace(box, [vcsa], made)
    assert (box.root / "dev/vcsa").read_text() == "mine"


@pytest.mark.parametrize(
    "path", ["/etc/vcsa", "/dev", "/dev/../etc/vcsa", "dev/vcsa", "/dev//vcsa", "/device/vcsa"]
)
def test_only_plain_paths_below_dev_are_allowed(box: Box, vcsa: DeviceNode, path: str) -> None:
    with pytest.raises(NotAllowed):
        graft.place(box, [moved(vcsa, path)])


def test_a_symlink_on_the_way_is_not_followed(box: Box, vcsa: DeviceNode, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (box.root / "dev/a").symlink_to(outside)  # leads to the node's directory, or the root's own
    with pytest.raises(PathConflict):
        graft.place(box, [moved(vcsa, "/dev/a/vcsa")])
    assert names(outside) == []


def test_a_directory_that_keeps_turning_into_a_symlink_leads_nowhere(
    box: Box, vcsa: DeviceNode, tmp_path: Path
) -> None:
    """The container swaps a directory and a symlink to one of the node's own."""
    outside = tmp_path / "outside"
    outside.mkdir()
    dev = box.root / "dev"
    (dev / "a").mkdir()
    (dev / "swap").symlink_to(outside)
    box.inside.tell("keep_exchanging", "/dev/a", "/dev/swap")
    node = moved(vcsa, "/dev/a/vcsa")
    placed = refused = 0
    for _ in range(ATTEMPTS):
        try:
            made = graft.place(box, [node])
        except PathConflict:
            refused += 1
        else:
            placed += 1
            graft.displace(box, [node], made)
    assert names(outside) == []
    assert placed > 0
    assert refused > 0


def test_on_the_nodes_own_dev_nothing_is_made(
    box: Box, vcsa: DeviceNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devicemount_agent.graft.nodes.HOST_DEV", box.root / "dev")
    with pytest.raises(UnsupportedRuntime, match="the node's own /dev"):
        graft.place(box, [vcsa])
    make_node(box.root / "dev/vcsa", vcsa.number)
    assert graft.place(box, [vcsa]) == frozenset()


def test_on_a_volume_nothing_is_made(v1: Lab, vcsa: DeviceNode) -> None:
    box = v1.container()
    (box.root / "dev/volume").mkdir()
    box.inside.tell("mount", "tmpfs", "/dev/volume", "tmpfs", 0)
    with pytest.raises(PathConflict, match="on a volume"):
        graft.place(box, [moved(vcsa, "/dev/volume/vcsa")])


def test_owner_and_mode_are_the_hosts(box: Box, vcsa: DeviceNode, tmp_path: Path) -> None:
    host = tmp_path / "vcsa"
    make_node(host, vcsa.number)
    os.chown(host, 0, 42)
    host.chmod(0o660)
    graft.place(box, [replace(vcsa, host_path=str(host), uid=0, gid=42)])
    found = os.lstat(box.root / "dev/vcsa")
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 42, 0o660)


def test_where_no_owner_is_said_the_containers_user_owns_it(box: Box, vcsa: DeviceNode) -> None:
    box.inside.tell("become", 1000, 2000)
    graft.place(box, [vcsa])
    found = os.lstat(box.root / "dev/vcsa")
    host = Path("/dev/vcsa").stat()
    assert (found.st_uid, found.st_gid) == (1000, 2000)
    assert stat.S_IMODE(found.st_mode) == stat.S_IMODE(host.st_mode)


def test_owner_and_mode_of_the_allocation_win(box: Box, vcsa: DeviceNode) -> None:
    box.inside.tell("become", 1000, 2000)
    said = replace(vcsa, host_path="/dev/absent", mode=0o640, uid=7)
    graft.place(box, [said])
    found = os.lstat(box.root / "dev/vcsa")
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (7, 2000, 0o640)


def test_the_hosts_node_is_looked_for_where_the_node_is_seen(
    box: Box, vcsa: DeviceNode, tmp_path: Path
) -> None:
    (tmp_path / "run/driver").mkdir(parents=True)
    make_node(tmp_path / "run/driver/vcsa", vcsa.number)
    (tmp_path / "run/driver/vcsa").chmod(0o604)
    graft.place(box, [replace(vcsa, host_path="/run/driver/vcsa")], root=tmp_path)
    assert stat.S_IMODE(os.lstat(box.root / "dev/vcsa").st_mode) == 0o604


def test_where_the_container_has_ended_there_is_nothing_to_remove(
    box: Box, vcsa: DeviceNode
) -> None:
    made = graft.place(box, [vcsa])
    box.inside.process.kill()
    box.inside.process.wait()
    graft.displace(box, [vcsa], made)


@pytest.fixture
def silent(v1: Lab) -> Iterator[tuple[Box, int]]:
    """A container that can mount a file server which never answers, and the server's end."""
    with closing(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)) as fd:
        yield v1.container(pass_fds=(fd,)), fd


@pytest.mark.parametrize(
    ("target", "mode"),
    [("/dev", "40000"), ("/dev/dri", "40000"), ("/dev/dri/vcsa", "100000")],
)
def test_a_file_server_of_the_containers_is_not_waited_for(
    silent: tuple[Box, int], vcsa: DeviceNode, target: str, mode: str
) -> None:
    box, fd = silent
    (box.root / "dev/dri").mkdir()
    (box.root / "dev/dri/vcsa").touch()
    box.inside.tell("mount_silent_server", target, fd, mode)
    node = moved(vcsa, "/dev/dri/vcsa")

    def all_steps() -> None:
        for step in (
            lambda: graft.missing(Places(box), [node]),
            lambda: graft.place(box, [node]),
            lambda: graft.displace(box, [node], frozenset({"/dev/dri", node.path})),
        ):
            with suppress(UnsupportedRuntime, PathConflict):
                step()

    asked = threading.Thread(target=all_steps, daemon=True)
    asked.start()
    asked.join(DEADLINE_S)
    assert not asked.is_alive()


def test_nor_is_one_that_was_mounted_after_the_look_at_the_mounts(
    silent: tuple[Box, int],
) -> None:
    box, fd = silent
    (box.root / "dev/dri").mkdir()
    places = Places(box)
    box.inside.tell("mount_silent_server", "/dev/dri", fd, "40000")
    with pytest.raises(UnsupportedRuntime, match="has just been made"):
        places.standing(PurePosixPath("/dev/dri/card0"))
