# SPDX-License-Identifier: Apache-2.0
"""In a tenant's mount namespace the agent makes prepared system calls and nothing else: no module,
file or library is looked up by a name there, not even when something goes wrong.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devicemount_agent.kernel import namespace
from devicemount_agent.kernel.files import closing
from devicemount_agent.kernel.namespace import within
from devicemount_agent.kernel.syscall import number, prepared
from node.agent.containers import Lab

SYS_GETPID = number(x86_64=39, aarch64=172)
PROGRAM = Path(__file__).with_name("watched_thread.py")


def test_nothing_is_looked_up_by_name(v1: Lab) -> None:
    box = v1.container()
    with closing(os.open(f"/proc/{box.init_pid}/ns/mnt", os.O_RDONLY)) as fd:
        command = [sys.executable, PROGRAM, str(fd)]
        said = json.loads(subprocess.check_output(command, pass_fds=(fd,), timeout=30))
    assert said["results"][0] == said["pid"]
    assert said["results"][1] < 0, "and an error is a number there"
    assert len(said["results"]) == 2, "after which nothing more is done"
    assert said["seen"] == []


def test_a_thread_that_fails_prints_no_source_from_there(
    v1: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback reads source files by name: the tenant's, there."""
    box = v1.container()
    real = namespace.made

    def failing(call: tuple[object, ...]) -> int:
        if call[0] is SYS_GETPID:
            raise MemoryError
        return real(call)  # type: ignore[arg-type]

    monkeypatch.setattr(namespace, "made", failing)
    entered = closing(os.open(f"/proc/{box.init_pid}/ns/mnt", os.O_RDONLY))
    with entered as fd, pytest.raises(MemoryError):
        within(fd, [prepared(SYS_GETPID)])
