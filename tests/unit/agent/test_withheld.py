# SPDX-License-Identifier: Apache-2.0
"""What cannot be removed of a withheld device is said, and stops nothing."""

import errno
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devicemount_agent import withheld
from devicemount_agent.container.find import Container
from devicemount_agent.errors import TargetNotRunning
from devicemount_agent.model import Access, DeviceNode, DeviceNumber

NODE = DeviceNode("/dev/vcs1", "/dev/vcs1", DeviceNumber("c", 7, 1), Access.READ)


def test_whatever_fails_the_rest_is_tried_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def gone(check: Any) -> None:
        asked.append("follow")
        raise TargetNotRunning("its main process has ended")

    def busy(*_: Any) -> None:
        asked.append("edits")
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def left(*_: Any) -> list[str]:
        asked.append("graft")
        return ["/dev/vcs1: a mount"]

    monkeypatch.setattr(withheld.edits, "displace", busy)
    monkeypatch.setattr(withheld.graft, "displace", left)
    container = cast("Container", SimpleNamespace(follow=gone))
    said = withheld.displace(container, {"/dev/vcs1"}, sets=((NODE,), (NODE,)), bound=())
    assert asked == ["follow", "edits", "graft", "edits", "graft"]
    assert said.startswith("its main process has ended; /dev/vcs1: [Errno 16]")
    assert said.endswith("; /dev/vcs1: a mount")
