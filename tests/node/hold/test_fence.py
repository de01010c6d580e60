# SPDX-License-Identifier: Apache-2.0
"""The fence falls only when, from outside, the pod is deleted and the agent has revoked."""

import os
import signal
from pathlib import Path

import pytest

from .conftest import Fence, wait_until

FORGED = 24  # two signals, six codes, two system calls


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGUSR1], ids=lambda s: s.name)
def test_it_ends_when_it_has_had_both_signals_in_either_order(
    fence: Fence, first: signal.Signals
) -> None:
    second = signal.SIGUSR1 if first is signal.SIGTERM else signal.SIGTERM
    os.kill(fence.pid, first)
    fence.wait_until_idle()
    assert not fence.has_ended()
    os.kill(fence.pid, second)
    wait_until(fence.has_ended, what="hold ended")
    assert fence.unshare.returncode == 0


def test_deletion_shows_in_its_name_while_it_stays(fence: Fence) -> None:
    assert fence.name == "hold"
    os.kill(fence.pid, signal.SIGTERM)
    wait_until(lambda: fence.name == "hold-deleted", what="hold renamed itself")
    assert not fence.has_ended()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda s: s.name)
def test_one_signal_twice_is_not_both(fence: Fence, number: signal.Signals) -> None:
    for _ in range(2):
        os.kill(fence.pid, number)
        fence.wait_until_idle()
    assert not fence.has_ended()


def test_a_signal_by_pidfd_counts(fence: Fence) -> None:
    pidfd = os.pidfd_open(fence.pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        fence.wait_until_idle()
        signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
        wait_until(fence.has_ended, what="hold ended")
    finally:
        os.close(pidfd)


def test_nothing_from_inside_its_pid_namespace_counts(fence: Fence, forge: Path) -> None:
    assert 0 < fence.attack(forge) < FORGED  # the kernel delivers some forgeries, never SI_USER
    fence.wait_until_idle()
    assert fence.name == "hold"
    os.kill(fence.pid, signal.SIGTERM)
    wait_until(lambda: fence.name == "hold-deleted", what="hold renamed itself")
    fence.attack(forge)
    fence.wait_until_idle()
    assert not fence.has_ended()
    os.kill(fence.pid, signal.SIGUSR1)
    wait_until(fence.has_ended, what="hold ended")


def test_no_other_signal_ends_it(fence: Fence) -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if number not in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(fence.pid, number)
    fence.wait_until_idle()
    assert not fence.has_ended()
    assert fence.name == "hold"
