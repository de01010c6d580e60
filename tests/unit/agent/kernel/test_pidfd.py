# SPDX-License-Identifier: Apache-2.0
"""A process's end shows on its pidfd; threads share their descriptors."""

import os
import subprocess
import threading

from devicemount_agent.kernel.files import closing
from devicemount_agent.kernel.pidfd import compare_files, has_ended


def test_the_end_of_a_process_shows() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    with closing(os.pidfd_open(process.pid)) as pidfd:
        assert not has_ended(pidfd)
        process.communicate()
        assert has_ended(pidfd)


def test_threads_share_their_descriptors_and_processes_do_not() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert compare_files(os.getpid(), thread.native_id) == 0
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            order = compare_files(os.getpid(), process.pid)
            assert order in (-1, 1)
            assert compare_files(process.pid, os.getpid()) == -order
            process.communicate()
    finally:
        ended.set()
        thread.join()
