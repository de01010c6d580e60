# SPDX-License-Identifier: Apache-2.0
"""Devices and files in containers of every shape: usable inside, all gone afterwards."""

import errno
import os
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from devicemount_agent.errors import PathConflict, UnsupportedRuntime
from devicemount_agent.graft import edits, graft
from devicemount_agent.graft.files import Files
from devicemount_agent.graft.mountinfo import mounts_of
from devicemount_agent.graft.permission import concerns
from devicemount_agent.graft.places import Places
from devicemount_agent.graft.sources import Sources
from devicemount_agent.graft.verify import verify
from devicemount_agent.model import BindMount, Bound, DeviceNode, Edits, Link

from .containers import FIRST_ID, MS_NODEV, MS_RDONLY, Box, Lab
from .test_mounts import MS_BIND, MS_REMOUNT, MS_SHARED, mounts, tree
from .test_nodes import names
from .waiting import DEADLINE_S

CONTENT = "of the node"
ATTEMPTS = 100


@dataclass
class Agent:
    """Plans, permits, places, verifies and removes as grafts.py does."""

    node: Path
    files: Files
    sources: Sources
    hold: Path

    def put(self, box: Box, *nodes: DeviceNode, wanted: Edits | None = None) -> "Put":
        graft.supported(box)
        places = Places(box)
        plan = edits.plan(
            places, wanted or Edits(), nodes=nodes, sources=self.sources, files=self.files
        )
        missing = graft.missing(places, nodes)
        want = {node.number: node.access for node in nodes}
        before = graft.earlier(box, want)
        graft.permit(box, want, earlier=before)
        bound = plan.bound - plan.standing
        mounted = {b.path for b in bound}
        made = graft.place(
            box, [n for n in nodes if n.path not in mounted], root=self.sources.node_root
        )
        edits.place(box, bound, plan.linked, sources=self.sources)
        verify(box, nodes, hold=self.hold)
        found = edits.verified(box, bound, plan.linked)
        return Put(nodes, found, plan, made | missing | plan.made)

    def take(self, box: Box, put: "Put") -> None:
        points = {bound.path for bound in put.bound}
        plain = {node.path for node in put.nodes} - points
        edits.displace(box, put.bound, put.plan.linked, put.made - plain)
        graft.displace(box, put.nodes, frozenset(p for p in put.made if p.startswith("/dev/")))


@dataclass
class Put:
    nodes: tuple[DeviceNode, ...]
    bound: frozenset[Bound]
    plan: edits.Plan
    made: frozenset[str]

    def mounted(self) -> set[str]:
        return {bound.path for bound in self.bound} & {node.path for node in self.nodes}


@pytest.fixture
def agent(tmp_path: Path, hold: Path) -> Agent:
    node, own = tmp_path / "node", tmp_path / "files"
    (node / "dev").mkdir(parents=True)
    (node / "lib").mkdir()
    (node / "lib/one.so").write_text(CONTENT)
    for name in ("vcsa", "vcsu"):
        found = Path("/dev", name).stat()
        os.mknod(node / "dev" / name, found.st_mode, found.st_rdev)
        (node / "dev" / name).chmod(0o660)
    return Agent(node, Files(own), Sources(node_root=node, own=own), hold)


def read_only_again(box: Box, path: str) -> None:
    box.inside.tell("mount", "none", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY)


def plain(lab: Lab) -> Box:
    return lab.container()


def own_users(lab: Lab) -> Box:
    return lab.container(own_users=True)


def nodev(lab: Lab) -> Box:
    return lab.container(dev_flags=MS_NODEV)


def read_only_dev(lab: Lab) -> Box:
    box = lab.container()
    read_only_again(box, "/dev")
    return box


def read_only_all(lab: Lab) -> Box:
    box = lab.container()
    read_only_again(box, "/dev")
    read_only_again(box, "/")
    return box


def own_users_read_only(lab: Lab) -> Box:
    box = lab.container(own_users=True)
    read_only_again(box, "/")
    return box


def nested(lab: Lab) -> Box:
    return lab.container(below="init.scope")


SHAPES = [plain, own_users, nodev, read_only_dev, read_only_all, own_users_read_only, nested]
MOUNTED = {own_users, nodev, read_only_dev, read_only_all, own_users_read_only}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_all_can_be_used_inside_and_is_gone_afterwards(
    either: Lab, agent: Agent, vcsa: DeviceNode, vcsu: DeviceNode, shape
) -> None:
    box = shape(either)
    before, mounted = tree(box.root), mounts(box)
    deep = replace(vcsu, path="/dev/a/b/vcsu")
    wanted = Edits(
        mounts=(BindMount("/usr/lib/one.so", "/lib/one.so", read_only=True),),
        links=(Link("/usr/lib/one.so.1", "one.so"),),
    )

    put = agent.put(box, vcsa, deep, wanted=wanted)

    assert put.mounted() == ({vcsa.path, deep.path} if shape in MOUNTED else set())
    for path in (vcsa.path, deep.path):
        box.inside.close(box.inside.open(path, os.O_RDWR))
    assert (box.root / "usr/lib/one.so.1").read_text() == CONTENT
    assert concerns(box, [vcsa, deep]) == ()
    root = FIRST_ID if "own_users" in shape.__name__ else 0
    found = os.lstat(box.root / "dev/vcsa")
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (root, root, 0o660)
    assert os.lstat(box.root / "dev/a").st_uid == root
    assert os.lstat(box.root / "usr/lib/one.so.1").st_uid == root

    agent.take(box, put)

    assert tree(box.root) == before
    assert mounts(box) == mounted
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        box.inside.open(vcsa.path)


@pytest.mark.parametrize("shape", [plain, own_users, nodev], ids=lambda shape: shape.__name__)
def test_a_user_who_is_not_root_can_use_it(v1: Lab, agent: Agent, vcsa: DeviceNode, shape) -> None:
    box = shape(v1)
    box.inside.tell("become", 1000, 2000)
    agent.put(box, vcsa)
    assert concerns(box, [vcsa]) == ()
    box.inside.close(box.inside.open(vcsa.path, os.O_RDWR))


def test_whom_owner_and_mode_refuse_is_said(v1: Lab, agent: Agent, vcsa: DeviceNode) -> None:
    box = plain(v1)
    box.inside.tell("become", 1000, 2000)
    agent.put(box, replace(vcsa, uid=0, gid=44, mode=0o660))
    (concern,) = concerns(box, [vcsa])
    assert concern.reason == "NotPermitted"
    assert "user 1000 (groups 2000) may not open /dev/vcsa (0:44, 0660)" in concern.message


def test_a_privileged_container_is_said_not_to_be_isolated(
    v1: Lab, agent: Agent, vcsa: DeviceNode
) -> None:
    box = plain(v1)
    box.runtime = replace(box.runtime, allows_all=True)
    agent.put(box, vcsa)
    assert [concern.reason for concern in concerns(box, [vcsa])] == ["NotIsolated"]


def test_ids_of_an_allocation_are_the_containers(
    v1: Lab, agent: Agent, vcsa: DeviceNode, vcsu: DeviceNode
) -> None:
    box = own_users(v1)
    agent.put(box, replace(vcsa, uid=0, gid=44), replace(vcsu, uid=4_000_000, gid=7))
    found, far = os.lstat(box.root / "dev/vcsa"), os.lstat(box.root / "dev/vcsu")
    assert (found.st_uid, found.st_gid) == (FIRST_ID, FIRST_ID + 44)
    assert (far.st_uid, far.st_gid) == (FIRST_ID, FIRST_ID + 7)


@pytest.mark.parametrize("shape", [own_users, read_only_dev], ids=lambda shape: shape.__name__)
def test_what_stands_is_not_ours(
    v1: Lab, agent: Agent, vcsa: DeviceNode, vcsu: DeviceNode, shape
) -> None:
    box = v1.container(own_users=shape is own_users)
    if shape is own_users:
        box.inside.tell("make_file", "/dev/vcsa")
        box.inside.tell("make_file", "/vcsa")
        box.inside.tell("mount", "/vcsa", "/dev/vcsa", "", MS_BIND)
    else:
        os.mknod(box.root / "dev/vcsa", 0o20644, os.makedev(7, 128))
        read_only_again(box, "/dev")
    before, mounted = tree(box.root), mounts(box)
    if shape is read_only_dev:
        put = agent.put(box, vcsa)
        assert put.mounted() == set()
        agent.take(box, put)
    with pytest.raises(PathConflict, match="at /dev/vcsa"):
        agent.put(box, replace(vcsa, number=vcsu.number))
    assert tree(box.root) == before
    assert mounts(box) == mounted


def test_doing_it_twice_is_as_once(v1: Lab, agent: Agent, vcsa: DeviceNode) -> None:
    box = own_users(v1)
    put = agent.put(box, vcsa)
    again = edits.plan(Places(box), Edits(), nodes=[vcsa], sources=agent.sources, files=agent.files)
    assert put.bound <= {replace(b, mount_id=m.mount_id) for b in again.standing for m in put.bound}
    edits.place(box, put.bound, (), sources=agent.sources)
    assert mounts(box).count("/dev/vcsa") == 1
    agent.take(box, put)
    agent.take(box, put)
    assert "dev/vcsa" not in tree(box.root)


def test_a_mount_point_that_a_crash_left_is_taken(v1: Lab, agent: Agent, vcsa: DeviceNode) -> None:
    box = own_users(v1)
    Places(box).make_file(Path(vcsa.path))
    put = agent.put(box, vcsa)
    assert put.mounted() == {vcsa.path}


def test_anothers_file_is_not_covered(v1: Lab, agent: Agent, vcsa: DeviceNode) -> None:
    box = nodev(v1)
    (box.root / "dev/vcsa").write_text("mine")
    with pytest.raises(PathConflict, match="something else stands at /dev/vcsa"):
        agent.put(box, vcsa)


def test_a_hostpath_over_part_of_dev_is_never_written_through(
    v1: Lab, agent: Agent, vcsa: DeviceNode, vcsu: DeviceNode
) -> None:
    """F23: what is there gets the permission; what is missing is not made on the node."""
    box = v1.container()
    (box.root / "dev/dmdir").mkdir()
    box.inside.tell("mount", "tmpfs", "/dev/dmdir", "tmpfs", 0)
    host = box.root / "dev/dmdir"
    os.mknod(host / "vcsa", 0o20666, os.makedev(7, 128))
    before = (os.lstat(host).st_ino, os.lstat(host).st_mtime_ns, names(host))
    there = replace(vcsa, path="/dev/dmdir/vcsa")
    put = agent.put(box, there)
    box.inside.close(box.inside.open(there.path))
    agent.take(box, put)
    for missing in ("/dev/dmdir/vcsu", "/dev/dmdir/sub/vcsu"):
        with pytest.raises(PathConflict, match="would be made on a volume"):
            agent.put(box, replace(vcsu, path=missing))
    read_only_again(box, "/dev/dmdir")
    with pytest.raises(PathConflict, match="would be made on a volume"):
        agent.put(box, replace(vcsu, path="/dev/dmdir/vcsu"))
    assert (os.lstat(host).st_ino, os.lstat(host).st_mtime_ns, names(host)) == before


def test_a_dev_whose_file_system_is_read_only_is_named(
    v1: Lab, agent: Agent, vcsa: DeviceNode
) -> None:
    with pytest.raises(UnsupportedRuntime, match="/dev: a read-only file system"):
        agent.put(v1.container(dev_flags=MS_RDONLY), vcsa)


def test_the_agents_device_files_are_nobody_elses(v1: Lab, agent: Agent, vcsa: DeviceNode) -> None:
    box = own_users(v1)
    agent.put(box, vcsa)
    directory = agent.files.root / box.id / "nodes"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert len(list(directory.iterdir())) == 1
    agent.files.forget(box.id)
    assert not directory.exists()
    box.inside.close(box.inside.open(vcsa.path, os.O_RDWR))  # the mount keeps it


def test_a_directory_that_keeps_turning_into_a_symlink_leads_nowhere(
    v1: Lab, agent: Agent, vcsa: DeviceNode, tmp_path: Path
) -> None:
    """Where nodes are mounted: what is made, mounted and removed stays in the container."""
    outside = tmp_path / "outside"
    outside.mkdir()
    box = nodev(v1)
    (box.root / "dev/a").mkdir()
    (box.root / "dev/swap").symlink_to(outside)
    box.inside.tell("keep_exchanging", "/dev/a", "/dev/swap")
    node = replace(vcsa, path="/dev/a/vcsa")
    placed = refused = 0
    here = {mounted.id for mounted in mounts_of(Path("/proc/self"))}
    attempts = 0
    give_up = time.monotonic() + 4 * DEADLINE_S
    while attempts < ATTEMPTS or not (placed and refused):
        assert time.monotonic() < give_up
        attempts += 1
        made: frozenset[str] = frozenset({node.path})
        bound: frozenset[Bound] = frozenset()
        try:
            plan = edits.plan(
                Places(box), Edits(), nodes=[node], sources=agent.sources, files=agent.files
            )
            bound = plan.bound
            edits.place(box, bound, (), sources=agent.sources)
            placed += 1
        except (PathConflict, UnsupportedRuntime):
            refused += 1
        edits.displace(box, bound, (), made)
    assert names(outside) == []
    assert {mounted.id for mounted in mounts_of(Path("/proc/self"))} == here


def test_below_a_shared_mount_nothing_is_mounted(v1: Lab, agent: Agent, vcsa: DeviceNode) -> None:
    box = nodev(v1)
    box.inside.tell("mount", "none", "/dev", "", MS_SHARED)
    before = tree(box.root)
    with pytest.raises(UnsupportedRuntime, match="/dev/vcsa is on /dev, a shared mount"):
        agent.put(box, vcsa)
    assert tree(box.root) == before
