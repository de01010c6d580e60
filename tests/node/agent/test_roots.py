# SPDX-License-Identifier: Apache-2.0
"""A container that makes one of its volumes look like its own root or /dev: nothing is written
through to the node.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from devicemount_agent.container.find import Container
from devicemount_agent.container.runtimes import RuntimeFacts
from devicemount_agent.errors import PathConflict, UnsupportedRuntime
from devicemount_agent.graft import edits, graft
from devicemount_agent.graft.files import Files
from devicemount_agent.graft.places import Places
from devicemount_agent.graft.sources import Sources
from devicemount_agent.kernel.files import closing, facts_of
from devicemount_agent.kernel.mount import (
    MOUNT_ATTR_RDONLY,
    attaching,
    cloning_directory,
    mount_setattr,
)
from devicemount_agent.kernel.namespace import descriptors_of, root_of, within
from devicemount_agent.model import DeviceNode, Edits, Link
from devicemount_agent.requests import Target

from .containers import Box, Lab
from .test_mounts import tree

LINK = Link("/lib/made", "one.so")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A directory of the node's disk."""
    made = tmp_path / "volume"
    (made / "dev").mkdir(parents=True)
    (made / "lib").mkdir()
    return made


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(node_root=Path("/"), own=tmp_path / "files")


def mount_volume(box: Box, volume: Path, path: str, *, sets: int = 0) -> None:
    """Mount it into a container, as the runtime does at its start."""
    with (
        closing(os.open(volume, os.O_PATH)) as fd,
        closing(descriptors_of([cloning_directory(fd)], path=path)[0]) as tree_fd,
        closing(os.open(path.lstrip("/"), os.O_PATH, dir_fd=box.root_fd)) as target_fd,
    ):
        mount_setattr(tree_fd, sets=sets)
        assert within(box.pidfd, [attaching(tree_fd, target_fd)]) == [0]


def put_link(box: Box, sources: Sources, files: Files) -> None:
    plan = edits.plan(Places(box), Edits(links=(LINK,)), sources=sources, files=files)
    edits.place(box, (), plan.linked, sources=sources)


@pytest.mark.parametrize("sets", [0, MOUNT_ATTR_RDONLY], ids=["writable", "read-only"])
def test_a_process_that_changed_its_root_to_a_volume(
    v1: Lab, volume: Path, tmp_path: Path, sources: Sources, sets: int
) -> None:
    box = v1.container()
    box.inside.tell("make_directory", "/lib")
    mount_volume(box, volume / "lib", "/lib", sets=sets)
    box.inside.tell("chroot", "/lib")

    with pytest.raises(UnsupportedRuntime, match="on the volume /lib"):
        put_link(box, sources, Files(tmp_path / "files"))

    assert tree(volume) == {"dev", "lib"}


def test_dev_that_is_a_volume(either: Lab, volume: Path, vcsa: DeviceNode) -> None:
    box = either.container()
    mount_volume(box, volume / "dev", "/dev")

    with pytest.raises(PathConflict, match="on a volume"):
        graft.place(box, [vcsa])

    assert tree(volume) == {"dev", "lib"}


def test_the_root_is_the_containers_not_the_processs(v1: Lab, volume: Path) -> None:
    box = v1.container()
    was = os.fstat(box.root_fd)
    mount_volume(box, volume, "/dev")
    box.inside.tell("chroot", "/dev")
    assert box.root.samefile(volume)

    with closing(root_of(box.pidfd)) as fd:
        assert os.path.samestat(os.fstat(fd), was)


def found(box: Box) -> Container:
    """What the agent made of it when it found it."""
    return Container(
        id=box.id,
        pod_uid=box.pod_uid,
        target=Target("team-a", "notebook-0", box.name),
        init_pid=box.init_pid,
        pidfd=os.dup(box.pidfd),
        root_fd=os.dup(box.root_fd),
        cgroup=box.cgroup,
    )


def test_a_mount_namespace_that_the_main_process_made_is_followed_after_a_check(v1: Lab) -> None:
    box = v1.container()
    container = found(box)
    was = facts_of(container.root_fd).mount_id
    refusal = UnsupportedRuntime("no")

    def refuse(now: Container) -> None:
        assert facts_of(now.root_fd).mount_id != was
        raise refusal

    container.follow(refuse)  # there is nothing to check
    box.inside.tell("unshare")
    with pytest.raises(UnsupportedRuntime):
        container.follow(refuse)
    assert facts_of(container.root_fd).mount_id == was

    container.follow(graft.supported)
    with closing(root_of(box.pidfd)) as fd:
        assert facts_of(container.root_fd).mount_id == facts_of(fd).mount_id != was
    container.close()


def test_a_volume_that_became_the_root_there_is_not_followed_to(v1: Lab, volume: Path) -> None:
    box = v1.container()
    container = found(box)
    was = facts_of(container.root_fd)
    mount_volume(box, volume, "/dev")
    box.inside.tell("unshare")
    box.inside.tell("enter_root", "/dev")
    with closing(root_of(box.pidfd)) as fd:
        assert os.path.samestat(os.fstat(fd), volume.stat())

    container.follow(graft.supported)

    assert facts_of(container.root_fd) == was
    container.close()


def test_a_main_process_in_a_user_namespace_of_its_own_making(v1: Lab) -> None:
    box = v1.container(own_users=True)
    box.runtime = RuntimeFacts(type="io.containerd.runc.v2", has_own_users=True)
    graft.supported(box)

    box.runtime = replace(box.runtime, has_own_users=False)
    with pytest.raises(UnsupportedRuntime, match="user namespace of its own"):
        graft.supported(box)


def test_a_device_file_that_was_mounted_over_ours_keeps_its_owner(
    v1: Lab, volume: Path, vcsa: DeviceNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = v1.container()
    theirs, found = volume / "vcsa", Path("/dev/vcsa").stat()
    os.mknod(theirs, found.st_mode, found.st_rdev)
    theirs.chmod(0o600)
    make = os.mknod

    def make_and_cover(path: str, mode: int, device: int, *, dir_fd: int) -> None:
        make(path, mode, device, dir_fd=dir_fd)
        mount_volume(box, theirs, "/dev/vcsa")

    monkeypatch.setattr(os, "mknod", make_and_cover)
    with pytest.raises(PathConflict, match="mounted at /dev/vcsa meanwhile"):
        graft.place(box, [replace(vcsa, mode=0o666, uid=7)])

    after = theirs.stat()
    assert (after.st_uid, after.st_mode & 0o777) == (0, 0o600)


def test_cgroups_too_deep_for_a_path_keep_nothing_from_ending(
    either: Lab, vcsa: DeviceNode
) -> None:
    box = either.container()
    depth, name, here = 20, "d" * 250, os.open(box.cgroup.path, os.O_PATH | os.O_DIRECTORY)
    fds = [here]
    for _ in range(depth):
        os.mkdir(name, dir_fd=fds[-1])
        fds.append(os.open(name, os.O_PATH | os.O_DIRECTORY, dir_fd=fds[-1]))
    want = {vcsa.number: vcsa.access}
    try:
        before = graft.earlier(box, want)
        graft.permit(box, want, earlier=before)
        graft.permit(box, {}, earlier=before)
        assert vcsa.number not in graft.allowed(box)
    finally:
        for fd in reversed(fds):
            if fd is not fds[-1]:
                os.rmdir(name, dir_fd=fd)
        for fd in fds:
            os.close(fd)
