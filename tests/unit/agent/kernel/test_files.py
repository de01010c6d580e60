# SPDX-License-Identifier: Apache-2.0
"""Paths resolve inside a root, and device nodes are told from other files by their links."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicemount_agent.kernel.files import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_SYMLINKS,
    closing,
    device_files,
    links_in,
    openat2,
    statfs_type,
)

PROC_SUPER_MAGIC = 0x9FA0


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "inside").mkdir()
    with closing(os.open(tmp_path, os.O_PATH)) as fd:
        yield fd


def test_an_absolute_path_and_a_symlink_stay_inside_the_root(root_fd: int, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/inside")
    for path in ("/inside", "/link", "../../inside"):
        with closing(openat2(root_fd, path, flags=os.O_PATH, resolve=RESOLVE_IN_ROOT)) as fd:
            assert os.fstat(fd).st_ino == (tmp_path / "inside").stat().st_ino


def test_a_symlink_is_refused_where_none_is_wanted(root_fd: int, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/inside")
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
    with pytest.raises(OSError, match="link") as caught:
        openat2(root_fd, "/link", flags=os.O_PATH, resolve=resolve)
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, "/link")


def test_an_open_device_is_seen_among_the_descriptors(tmp_path: Path) -> None:
    with closing(os.open("/dev/null", os.O_RDONLY)) as fd, (tmp_path / "file").open("w"):
        found = {name: (mode, rdev) for name, mode, rdev in device_files("/proc/self/fd")}
    mode, rdev = found[str(fd)]
    assert stat.S_ISCHR(mode)
    assert rdev == os.makedev(1, 3)
    assert all(stat.S_ISCHR(mode) or stat.S_ISBLK(mode) for mode, _ in found.values())


def test_the_type_of_a_file_system_is_told() -> None:
    assert statfs_type("/proc") == PROC_SUPER_MAGIC


def test_a_link_whose_path_is_too_long_to_be_told_hides_no_other(tmp_path: Path) -> None:
    """As a tenant makes one: a search reads the links of all that it has open."""
    fds = [os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)]
    name = "d" * 250
    try:
        for _ in range(20):
            os.mkdir(name, dir_fd=fds[-1])
            fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
        links = dict(links_in("/proc/self/fd"))
        assert links[str(fds[-1])] == ""
        assert links[str(fds[0])] == str(tmp_path)
    finally:
        for above in reversed(fds[:-1]):
            os.close(fds.pop())
            os.rmdir(name, dir_fd=above)
        os.close(fds.pop())
