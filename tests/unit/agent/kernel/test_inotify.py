# SPDX-License-Identifier: Apache-2.0
"""The bell rings when a file is moved into a watched directory, and is silent when drained."""

import select
from pathlib import Path

from devicemount_agent.kernel import inotify
from devicemount_agent.kernel.files import closing


def test_a_file_that_is_moved_in_is_heard_of_once(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    (tmp_path / "watched").mkdir()
    with closing(inotify.inotify_init1()) as fd:
        inotify.inotify_add_watch(fd, str(tmp_path / "watched"), inotify.IN_MOVED_TO)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        assert poller.poll(0) == []
        (tmp_path / "new").rename(tmp_path / "watched" / "checkpoint")
        assert poller.poll(5000) == [(fd, select.POLLIN)]
        inotify.drain(fd)
        assert poller.poll(0) == []
