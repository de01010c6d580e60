# SPDX-License-Identifier: Apache-2.0
"""Files, directories, sockets, links and texts in containers that run: all there, all gone; and
what a hostile container can make of it.
"""

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from devicemount_agent.errors import (
    AllocationUnknown,
    DeviceMountError,
    NotAllowed,
    PathConflict,
    UnsupportedRuntime,
)
from devicemount_agent.graft import edits
from devicemount_agent.graft.files import Files
from devicemount_agent.graft.mountinfo import mounts_of
from devicemount_agent.graft.places import Places
from devicemount_agent.graft.sources import Sources
from devicemount_agent.model import BindMount, Edits, EnvVar, Link, Overlaid

from .containers import Box, Lab

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_SHARED = 0x1, 0x20, 0x1000, 0x4000, 0x100000
ATTEMPTS = 200


@dataclass
class Graft:
    """Plans, places and removes, as the agent does around its journal."""

    node: Path
    files: Files
    sources: Sources

    def put(self, box: Box, wanted: Edits) -> edits.Plan:
        plan = edits.plan(Places(box), wanted, sources=self.sources, files=self.files)
        bound = plan.bound - plan.standing
        edits.place(box, bound, plan.linked, sources=self.sources)
        found = edits.verified(box, bound, plan.linked)
        return replace(plan, bound=found | (plan.bound & plan.standing))

    def take(self, box: Box, plan: edits.Plan) -> None:
        edits.displace(box, plan.bound - plan.standing, plan.linked, plan.made)

    def host(self, path: str, text: str = "") -> str:
        made = self.node / path.lstrip("/")
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(text)
        return path

    def bind(self, path: str, *, read_only: bool = True) -> BindMount:
        return BindMount(path, self.host(path, f"host's {path}"), read_only)


@pytest.fixture
def graft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Graft:
    monkeypatch.setattr("devicemount_agent.graft.shape.NODE_PROCESS", Path("/proc/self"))
    node, own = tmp_path / "node", tmp_path / "files"
    node.mkdir()
    return Graft(node=node, files=Files(own), sources=Sources(node_root=node, own=own))


@pytest.fixture
def box(v1: Lab) -> Box:
    return v1.container()


def tree(root: Path) -> set[str]:
    """Every name below a root, without following links."""
    return {
        str(Path(directory, name).relative_to(root))
        for directory, directories, names in os.walk(root)
        for name in (*directories, *names)
    }


def mounts(box: Box) -> list[str]:
    return sorted(str(mounted.point) for mounted in mounts_of(Path(f"/proc/{box.init_pid}")))


def make_read_only(box: Box) -> None:
    box.inside.tell("mount", "none", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY)


@pytest.fixture(params=["distroless", "image", "read-only"])
def target(request: pytest.FixtureRequest, either: Lab) -> Box:
    made = either.container()
    if request.param != "distroless":
        (made.root / "usr/lib").mkdir(parents=True)
        (made.root / "lib").symlink_to("usr/lib")
        (made.root / "var").mkdir()
        (made.root / "run").mkdir()
        (made.root / "var/run").symlink_to("/run")
        (made.root / "etc").mkdir()
        (made.root / "etc/ld.so.preload").write_text("the image's")
    if request.param == "read-only":
        make_read_only(made)
    return made


def test_all_is_there_and_all_is_gone(graft: Graft, target: Box) -> None:
    before, mounted = tree(target.root), mounts(target)
    (graft.node / "opt/driver/lib").mkdir(parents=True)
    (graft.node / "opt/driver/lib/libone.so").write_text("one")
    listening = socket.socket(socket.AF_UNIX)
    (graft.node / "run").mkdir()
    here = Path.cwd()
    os.chdir(graft.node)
    try:
        listening.bind("run/vendor.sock")
    finally:
        os.chdir(here)
    wanted = Edits(
        mounts=(
            graft.bind("/usr/lib/libcuda.so.1.2.3"),
            graft.bind("/lib/firmware/gsp.bin"),
            graft.bind("/etc/ld.so.preload"),
            BindMount("/usr/local/driver", "/opt/driver", read_only=False, no_exec=True),
            BindMount("/var/run/vendor.sock", "/run/vendor.sock", read_only=False),
        ),
        links=(Link("/usr/lib/libcuda.so.1", "libcuda.so.1.2.3"), Link("/lib/x/l", "../l")),
        env=(EnvVar("LD_LIBRARY_PATH", "/usr/local/driver/lib"),),
    )

    plan = graft.put(target, wanted)

    root = target.root
    inside = {b.path for b in plan.bound}
    assert "/run/devicemount" in inside
    libcuda = root / "usr/lib/libcuda.so.1.2.3"
    assert libcuda.read_text() == "host's /usr/lib/libcuda.so.1.2.3"
    assert (root / "usr/lib/libcuda.so.1").readlink() == Path("libcuda.so.1.2.3")
    assert (root / "usr/local/driver/lib/libone.so").read_text() == "one"
    assert (root / "etc/ld.so.preload").read_text() == "host's /etc/ld.so.preload"
    assert os.statvfs(root / "usr/local/driver").f_flag & os.ST_NOEXEC
    assert not os.statvfs(libcuda).f_flag & os.ST_NOEXEC
    seen = target.inside.open("/usr/local/driver/lib/libone.so", os.O_WRONLY)
    target.inside.close(seen)
    with pytest.raises(OSError, match="Read-only"):
        target.inside.open("/usr/lib/libcuda.so.1.2.3", os.O_WRONLY)
    flags = os.statvfs(root / "usr/local/driver").f_flag
    assert flags & os.ST_NOSUID
    assert flags & os.ST_NODEV
    assert stat.S_ISSOCK(os.lstat(next(root.glob("**/vendor.sock"))).st_mode)
    again = graft.put(target, wanted)
    assert {b.path for b in again.standing} == {b.path for b in (*plan.bound, *plan.linked)}

    graft.take(target, plan)
    graft.take(target, plan)

    assert tree(target.root) == before
    assert mounts(target) == mounted
    listening.close()


def test_the_images_own_file_is_back_afterwards(graft: Graft, box: Box) -> None:
    (box.root / "etc").mkdir()
    (box.root / "etc/ld.so.preload").write_text("the image's")
    plan = graft.put(box, Edits(mounts=(graft.bind("/etc/ld.so.preload"),)))
    assert "/etc/ld.so.preload" not in plan.made
    graft.take(box, plan)
    assert (box.root / "etc/ld.so.preload").read_text() == "the image's"


def test_what_the_runtime_brought_is_left(graft: Graft, box: Box) -> None:
    mount = graft.bind("/usr/lib/lib.so")
    (box.root / "usr/lib").mkdir(parents=True)
    (box.root / "usr/lib/lib.so").touch()
    first = graft.put(box, Edits(mounts=(mount,)))  # stands for the runtime's own
    second = edits.plan(
        Places(box), Edits(mounts=(mount,)), sources=graft.sources, files=graft.files
    )
    graft.take(box, second)
    assert (box.root / "usr/lib/lib.so").read_text() == "host's /usr/lib/lib.so"
    graft.take(box, first)
    assert (box.root / "usr/lib/lib.so").read_text() == ""


def test_who_uses_a_file_goes_on_after_it_is_gone(graft: Graft, box: Box) -> None:
    plan = graft.put(box, Edits(mounts=(graft.bind("/usr/lib/lib.so"),)))
    box.inside.open("/usr/lib/lib.so")
    graft.take(box, plan)
    assert mounts(box) == ["/", "/dev"]


def test_a_driver_on_the_node_that_was_replaced_is_still_taken_away(graft: Graft, box: Box) -> None:
    plan = graft.put(box, Edits(mounts=(graft.bind("/usr/lib/lib.so"),)))
    (graft.node / "usr/lib/lib.so").unlink()
    graft.host("/usr/lib/lib.so", "the next version")
    graft.take(box, plan)
    assert mounts(box) == ["/", "/dev"]


def test_a_mount_is_found_where_the_container_has_moved_it(graft: Graft, box: Box) -> None:
    plan = graft.put(box, Edits(mounts=(graft.bind("/opt/a/lib.so"),)))
    (box.root / "opt/a").rename(box.root / "opt/b")
    (box.root / "opt/a").mkdir()
    assert "/opt/b/lib.so" in mounts(box)
    graft.take(box, plan)
    assert mounts(box) == ["/", "/dev"]


def test_what_is_inside_of_another_mount_comes_after_it(graft: Graft, box: Box) -> None:
    (graft.node / "opt/driver").mkdir(parents=True)
    (graft.node / "opt/driver/conf").touch()
    mounts_ = (
        BindMount("/opt/driver/conf", graft.host("/etc/conf", "mine"), read_only=True),
        BindMount("/opt/driver", "/opt/driver", read_only=True),
    )
    plan = graft.put(box, Edits(mounts=mounts_))
    assert (box.root / "opt/driver/conf").read_text() == "mine"
    graft.take(box, plan)
    assert tree(box.root) == {"dev"}


def test_a_text_is_seen_in_place_of_a_driver_file(graft: Graft, box: Box) -> None:
    (box.root / "proc").mkdir()
    box.inside.tell("mount", "proc", "/proc", "proc", 0)
    box.inside.tell("mount", "tmpfs", "/proc/driver", "tmpfs", 0)  # this machine has no driver
    params = box.root / "proc/driver/nvidia/params"
    params.parent.mkdir()
    params.write_text("ModifyDeviceFiles: 1\n")
    wanted = Edits(overlaid=(Overlaid("/proc/driver/nvidia/params", "ModifyDeviceFiles: 0\n"),))
    plan = graft.put(box, wanted)
    assert params.read_text() == "ModifyDeviceFiles: 0\n"
    graft.take(box, plan)
    assert params.read_text() == "ModifyDeviceFiles: 1\n"
    absent = Edits(overlaid=(Overlaid("/proc/driver/absent/params", "x"),))
    assert len(graft.put(box, absent).bound) == 1  # the directory of our files only


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/", NotAllowed),
        ("/a/../b", NotAllowed),
        ("a", NotAllowed),
        ("/proc/self/x", PathConflict),
        ("/sys/x", PathConflict),
        ("/dev", PathConflict),
        ("/etc", PathConflict),
        ("/volumes", PathConflict),
        ("/link", PathConflict),
        ("/fifo", PathConflict),
        ("/kernel/version", PathConflict),
        ("/volumes/one/new", UnsupportedRuntime),
        ("/toproc/new", UnsupportedRuntime),
    ],
)
def test_where_nothing_is_mounted(
    graft: Graft, box: Box, tmp_path: Path, path: str, error: type[DeviceMountError]
) -> None:
    root = box.root
    for name in ("etc", "volumes/one", "kernel", "proc"):
        (root / name).mkdir(parents=True)
    box.inside.tell("mount", "proc", "/kernel", "proc", 0)
    box.inside.tell("mount", "ramfs", "/volumes/one", "ramfs", 0)
    (root / "link").symlink_to("/etc/x")
    (root / "toproc").symlink_to("/kernel")
    os.mkfifo(root / "fifo")
    before, mounted = tree(root / "dev"), mounts(box)
    source = graft.host("/usr/lib/file")
    if path in {"/dev", "/etc", "/volumes"}:
        (graft.node / "usr/lib/directory").mkdir()
        source = "/usr/lib/directory"
    with pytest.raises(error):
        graft.put(box, Edits(mounts=(BindMount(path, source, read_only=True),)))
    assert mounts(box) == mounted
    assert tree(root / "dev") == before


def test_symlinks_without_end_are_not_followed_for_ever(graft: Graft, box: Box) -> None:
    (box.root / "there").symlink_to("/and-back")
    (box.root / "and-back").symlink_to("there/.")
    source = graft.host("/usr/lib/file")
    with pytest.raises(PathConflict, match="/there/file leads over more than 8 symlinks"):
        graft.put(box, Edits(mounts=(BindMount("/there/file", source, read_only=True),)))


def test_a_directory_with_a_volume_in_it_is_not_covered(graft: Graft, box: Box) -> None:
    (box.root / "opt/app/data").mkdir(parents=True)
    box.inside.tell("mount", "tmpfs", "/opt/app/data", "tmpfs", 0)
    (graft.node / "opt").mkdir()
    with pytest.raises(PathConflict, match="would cover the mount /opt/app/data"):
        graft.put(box, Edits(mounts=(BindMount("/opt/app", "/opt", read_only=True),)))


def test_below_a_shared_mount_nothing_is_mounted(graft: Graft, box: Box) -> None:
    (box.root / "shared").mkdir()
    box.inside.tell("mount", "tmpfs", "/shared", "tmpfs", 0)
    box.inside.tell("mount", "none", "/shared", "", MS_SHARED)
    (box.root / "shared/file").touch()
    source = graft.host("/usr/lib/file")
    with pytest.raises(UnsupportedRuntime, match="a shared mount"):
        graft.put(box, Edits(mounts=(BindMount("/shared/file", source, read_only=True),)))


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(lambda root: (root / "run/devicemount").symlink_to("/etc"), id="symlink"),
        pytest.param(lambda root: os.mkfifo(root / "run/devicemount"), id="fifo"),
        pytest.param(lambda root: (root / "run/devicemount").write_text("x"), id="file"),
    ],
)
def test_a_place_of_our_files_that_is_taken_keeps_only_env_from_it(
    graft: Graft, box: Box, hostile
) -> None:
    (box.root / "run").mkdir()
    hostile(box.root)
    assert graft.put(box, Edits()).bound == frozenset()
    with pytest.raises(PathConflict, match="/run/devicemount"):
        graft.put(box, Edits(env=(EnvVar("A", "b"),)))


def test_an_older_kernel_gets_device_nodes_only(
    graft: Graft, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edits, "has_mount_setattr", lambda: False)
    assert "older than 5.12" in graft.put(box, Edits()).unshown
    text = Overlaid("/proc/driver/nvidia/params", "ModifyDeviceFiles: 0\n")
    assert graft.put(box, Edits(overlaid=(text,))).bound == frozenset()  # devices come without it
    with pytest.raises(UnsupportedRuntime, match=r"older than 5\.12"):
        graft.put(box, Edits(links=(Link("/l", "x"),)))


def test_a_directory_that_keeps_turning_into_a_symlink_leads_nowhere(
    graft: Graft, box: Box, tmp_path: Path
) -> None:
    """The container swaps a directory on the way and a symlink to one of the node's own."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "lib.so").touch()
    (box.root / "opt/a").mkdir(parents=True)
    (box.root / "opt/swap").symlink_to(outside)
    node_mounts = mounts_of(Path("/proc/self"))
    box.inside.tell("keep_exchanging", "/opt/a", "/opt/swap")
    wanted = Edits(mounts=(graft.bind("/opt/a/lib.so"),), links=(Link("/opt/a/l", "x"),))
    placed = refused = 0
    for _ in range(ATTEMPTS):
        try:
            graft.put(box, wanted)
        except (DeviceMountError, OSError):
            refused += 1
        else:
            placed += 1
    assert placed > 0
    assert refused > 0
    assert mounts_of(Path("/proc/self")) == node_mounts
    assert tree(outside) == {"lib.so"}


@pytest.fixture
def planned(graft: Graft, box: Box) -> Iterator[tuple[edits.Plan, set[str]]]:
    before = tree(box.root)
    wanted = Edits(
        mounts=(graft.bind("/usr/lib/one.so"), graft.bind("/opt/two.so")),
        links=(Link("/usr/lib/l", "one.so"),),
        env=(EnvVar("A", "b"),),
    )
    yield edits.plan(Places(box), wanted, sources=graft.sources, files=graft.files), before


@pytest.mark.parametrize("step", ["attach", "make_file", "make_link", "make_directory"])
def test_what_was_planned_can_be_removed_after_each_step(
    graft: Graft,
    box: Box,
    planned: tuple[edits.Plan, set[str]],
    step: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a journal's intent without its commit says it, after the agent was killed there."""
    plan, before = planned
    where = "devicemount_agent.graft.places.Places." if step != "attach" else ""
    name = f"{where}{step}" if where else "devicemount_agent.graft.mounts.within"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(name, killed)
        edits.place(box, plan.bound, plan.linked, sources=graft.sources)
    graft.take(box, plan)
    assert tree(box.root) == before
    edits.place(box, plan.bound, plan.linked, sources=graft.sources)  # or forward
    edits.verified(box, plan.bound, plan.linked)
    graft.take(box, plan)
    assert tree(box.root) == before
    assert mounts(box) == ["/", "/dev"]


def test_a_source_that_is_another_file_by_now_is_not_mounted(graft: Graft, box: Box) -> None:
    wanted = Edits(mounts=(graft.bind("/usr/lib/lib.so"),))
    plan = edits.plan(Places(box), wanted, sources=graft.sources, files=graft.files)
    (graft.node / "usr/lib/lib.so").unlink()
    (graft.node / "usr/lib/lib.so").symlink_to("/etc/shadow")
    with pytest.raises(AllocationUnknown):
        edits.place(box, plan.bound, plan.linked, sources=graft.sources)


def test_a_source_that_is_no_file_is_refused(graft: Graft, box: Box) -> None:
    (graft.node / "dev").mkdir()
    os.mknod(graft.node / "dev/null", 0o20666, os.makedev(1, 3))
    with pytest.raises(NotAllowed, match="no file, directory or socket"):
        graft.put(box, Edits(mounts=(BindMount("/opt/null", "/dev/null", read_only=True),)))


def test_the_images_own_link_of_that_name_is_left(graft: Graft, box: Box) -> None:
    (box.root / "usr").mkdir()
    (box.root / "usr/l").symlink_to("elsewhere")
    (box.root / "usr/f").touch()
    wanted = Edits(links=(Link("/usr/l", "x"), Link("/usr/f", "y")))
    graft.take(box, graft.put(box, wanted))
    assert (box.root / "usr/l").readlink() == Path("elsewhere")
    assert (box.root / "usr/f").is_file()


def test_a_directory_at_a_links_place_is_a_conflict(graft: Graft, box: Box) -> None:
    (box.root / "usr/l").mkdir(parents=True)
    with pytest.raises(PathConflict, match="something else stands at /usr/l"):
        graft.put(box, Edits(links=(Link("/usr/l", "x"),)))
