# SPDX-License-Identifier: Apache-2.0
"""Where the node's inotify instances are used up the agent works as always, and says it polls."""

import errno
import os

import pytest

from devicemount_agent.kernel import inotify
from devicemount_agent_api.v1 import agent_pb2 as pb

from .conftest import Node
from .test_loss import competitor, mounted
from .test_mount import can_open, seen, until
from .test_recovery import ready


async def test_without_inotify_it_polls_says_so_and_goes_back(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def used_up() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "inotify")

    with monkeypatch.context() as exhausted:
        exhausted.setattr(inotify, "inotify_init1", used_up)
        async with node.agent() as agent:
            assert await ready(node) == 200
            assert agent.bell.is_polling
            target, shadow = await mounted(node)
            assert can_open(target, "vcs1")
            node.kubelet.forget(shadow.pod)
            competitor(node, target)
            await seen(node, pb.LOST_PHASE)
            assert not can_open(target, "vcs1")
            assert sum(r.message.startswith("polled every_s=0.1") for r in caplog.records) == 1
            exhausted.undo()
            await until(lambda: not agent.bell.is_polling, "inotify again")
            assert await ready(node) == 200
