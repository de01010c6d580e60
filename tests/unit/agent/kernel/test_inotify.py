# SPDX-License-Identifier: Apache-2.0
"""The bell rings when a file is moved into a watched directory, and is silent when drained."""

import select
from pathlib import Path

import pytest

from devicemount_agent.kernel import inotify
from devicemount_agent.kernel.files import closing


def test_a_file_that_is_moved_in_is_heard_of_once(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    (tmp_path / "watched").mkdir()
    with closing(inotify.inotify_init1()) as fd:
        watch = inotify.inotify_add_watch(fd, str(tmp_path / "watched"), inotify.IN_MOVED_TO)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        assert poller.poll(0) == []
        (tmp_path / "new").rename(tmp_path / "watched" / "checkpoint")
        assert poller.poll(5000) == [(fd, select.POLLIN)]
        assert list(inotify.drain(fd)) == [(watch, inotify.IN_MOVED_TO)]
        assert poller.poll(0) == []


def test_a_watch_that_is_removed_says_so_and_is_silent(tmp_path: Path) -> None:
    with closing(inotify.inotify_init1()) as fd:
        watch = inotify.inotify_add_watch(fd, str(tmp_path), inotify.IN_CREATE)
        inotify.inotify_rm_watch(fd, watch)
        (tmp_path / "new").touch()
        assert list(inotify.drain(fd)) == [(watch, inotify.IN_IGNORED)]
        with pytest.raises(OSError, match="Invalid argument"):
            inotify.inotify_rm_watch(fd, watch)
