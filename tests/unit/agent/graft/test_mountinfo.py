# SPDX-License-Identifier: Apache-2.0
"""Lines of /proc/<pid>/mountinfo, as the kernel writes them."""

from pathlib import Path, PurePosixPath

import pytest

from devicemount_agent.graft.mountinfo import Mounted, by_id, mounts_of, served_above
from devicemount_agent.graft.places import is_empty_dir, is_private
from devicemount_agent.model import PodUID

LINES = r"""22 1 0:21 / / rw,relatime - overlay overlay rw,lowerdir=/a
23 22 0:22 / /dev rw,nosuid shared:5 master:2 - tmpfs tmpfs rw
24 22 8:1 /var/with\040space /data\040one rw - ext4 /dev/sda1 rw
25 22 0:40 / /nfs rw - nfs4 server:/ rw
26 22 0:41 / /fuse rw - fuse.sshfs - rw
"""


@pytest.fixture
def mounts(tmp_path: Path) -> tuple[Mounted, ...]:
    (tmp_path / "mountinfo").write_text(LINES)
    return mounts_of(tmp_path)


def test_each_part_is_where_it_stands(mounts: tuple[Mounted, ...]) -> None:
    root, dev, data, *_ = mounts
    assert (root.id, root.device, root.kind, root.is_shared) == (22, "0:21", "overlay", False)
    assert dev.is_shared
    assert (data.root, data.point) == ("/var/with space", PurePosixPath("/data one"))
    assert by_id(mounts, 24) is data
    assert by_id(mounts, 99) is None


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("/nfs", "nfs4"),
        ("/nfs/a/b", "nfs4"),
        ("/fuse/a", "fuse.sshfs"),
        ("/nfsx", None),
        ("/", None),
    ],
)
def test_a_server_on_the_way_is_seen(
    mounts: tuple[Mounted, ...], path: str, served: str | None
) -> None:
    found = served_above(mounts, PurePosixPath(path))
    assert (found.kind if found else None) == served


POD = PodUID("6b1f0c9e-0000-4000-8000-000000000001")
EMPTY_DIR = f"/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~empty-dir/run"


def mounted(point: str, *, root: str = "/", device: str = "8:1", kind: str = "ext4") -> Mounted:
    return Mounted(
        id=1, device=device, root=root, point=PurePosixPath(point), is_shared=False, kind=kind
    )


@pytest.mark.parametrize(
    ("mount", "private", "empty_dir"),
    [
        pytest.param(mounted("/"), True, False, id="the root"),
        pytest.param(
            mounted("/run", device="0:50", kind="tmpfs"), True, False, id="the runtime's tmpfs"
        ),
        pytest.param(mounted("/run", root=EMPTY_DIR), False, True, id="an emptyDir on disk"),
        pytest.param(
            mounted("/run", device="0:60", kind="tmpfs"), False, True, id="an emptyDir in memory"
        ),
        pytest.param(
            mounted("/run", device="0:70", kind="tmpfs"), False, False, id="the node's own tmpfs"
        ),
        pytest.param(
            mounted("/run", root=EMPTY_DIR.replace(POD, "other")), False, False, id="another pod's"
        ),
        pytest.param(mounted("/data", root="/srv"), False, False, id="a volume"),
    ],
)
def test_what_is_the_pods_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mount: Mounted,
    private: bool,  # noqa: FBT001
    empty_dir: bool,  # noqa: FBT001
) -> None:
    seen = f"1 0 0:60 / {EMPTY_DIR} rw - tmpfs tmpfs rw\n2 0 0:70 / /run rw - tmpfs tmpfs rw\n"
    (tmp_path / "mountinfo").write_text(seen)
    monkeypatch.setattr("devicemount_agent.graft.shape.NODE_PROCESS", tmp_path)
    assert (is_private(mount), is_empty_dir(mount, POD)) == (private, empty_dir)
