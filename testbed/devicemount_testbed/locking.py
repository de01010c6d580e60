# SPDX-License-Identifier: Apache-2.0
"""One command at a time changes the testbed or builds its images; the others wait for it."""

import contextlib
import fcntl
from collections.abc import Iterator

from devicemount_testbed.layout import Layout
from devicemount_testbed.report import say


@contextlib.contextmanager
def exclusive(layout: Layout) -> Iterator[None]:
    """Hold the cache's lock; the kernel releases it when its holder dies."""
    layout.cache.mkdir(parents=True, exist_ok=True)
    with layout.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another command of the testbed to end ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
