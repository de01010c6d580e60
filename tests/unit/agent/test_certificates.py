# SPDX-License-Identifier: Apache-2.0
"""The agent's certificates by way of another process: what it says, and when it is asked."""

import datetime
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from devicemount_agent.certificates import Certificates, NoAnswer, Shown, ask_child
from devicemount_agent_api.identity import HOLD, MountedIdentity, to_pem
from devicemount_agent_api.identity_process import answer
from devicemount_operator.authority import LEAF_LIFE, Pair, issue, make_authority

NOW = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
NAME = "devicemount-agent"
NEAR = datetime.timedelta(seconds=1)
DEADLINE_S = 5.0
OLD, NEW = make_authority(now=NOW), make_authority(now=NOW)


def leaf(authority: Pair, *, now: datetime.datetime = NOW) -> Pair:
    return issue(authority, name=NAME, usage=ExtendedKeyUsageOID.SERVER_AUTH, now=now)


@dataclass
class Mounted:
    """A directory, a clock, what an operator would say of it, and how often a child was asked."""

    directory: Path
    now: datetime.datetime = NOW
    asked: int = 0
    is_broken: bool = False
    here: MountedIdentity = field(init=False)
    certificates: Certificates = field(init=False)

    def __post_init__(self) -> None:
        self.here = MountedIdentity(self.directory, clock=lambda: self.now)
        self.certificates = Certificates(
            self.directory, name=NAME, ask=self.ask, clock=lambda: self.now
        )

    def ask(self, question: bytes) -> bytes:
        self.asked += 1
        if self.is_broken:
            raise NoAnswer("no process can be started")
        return answer(question, now=self.now)

    def write(self, shown: Pair, *trusted: Pair) -> None:
        (self.directory / "tls.crt").write_bytes(shown.certificate_pem)
        (self.directory / "tls.key").write_bytes(shown.key_pem)
        (self.directory / "ca.crt").write_bytes(to_pem(one.certificate for one in trusted))

    def agrees(self) -> Shown:
        """Both say the same."""
        here, shown = self.here.now_shown(), self.certificates.now_shown()
        assert here is not None
        assert shown == Shown(here.key, here.chain, here.trusted)
        assert self.certificates.amiss() == self.here.amiss(NAME)
        return shown


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path)


def test_nobody_is_asked_while_nothing_changes(mounted: Mounted) -> None:
    mounted.write(leaf(OLD), OLD)
    mounted.agrees()
    mounted.now += NEAR
    mounted.agrees()
    assert mounted.asked == 1
    mounted.write(leaf(OLD), OLD)
    mounted.agrees()
    assert mounted.asked == 2


def test_a_replaced_authority_is_followed_as_in_one_process(mounted: Mounted) -> None:
    first, second = leaf(OLD), leaf(NEW)
    mounted.write(first, OLD)
    mounted.agrees()
    mounted.write(second, NEW)
    assert mounted.agrees().chain == first.certificate_pem
    mounted.now += HOLD
    assert mounted.agrees().chain == second.certificate_pem
    mounted.now = OLD.certificate.not_valid_after_utc
    assert mounted.agrees().trusted == NEW.certificate_pem


def test_what_time_changes_is_said_in_time(mounted: Mounted) -> None:
    shown = leaf(OLD)
    mounted.write(shown, OLD)
    mounted.now = shown.certificate.not_valid_before_utc - NEAR
    for moment, said in (
        (mounted.now, "is not valid before"),
        (NOW, ""),
        (NOW + LEAF_LIFE, "expired at"),
        (NOW, ""),  # the clock was set back
    ):
        mounted.now = moment
        mounted.agrees()
        amiss = mounted.certificates.amiss()
        assert said in amiss if said else not amiss


def test_broken_and_missing_files_are_named_once_and_leave_the_last_good(mounted: Mounted) -> None:
    assert mounted.certificates.now_shown() is None
    assert mounted.certificates.amiss() == mounted.here.amiss(NAME) != ""
    mounted.write(leaf(OLD), OLD)
    mounted.agrees()
    (mounted.directory / "tls.key").write_bytes(b"nonsense")
    mounted.agrees()
    mounted.agrees()
    assert "tls.key holds no private key" in mounted.certificates.amiss()
    assert mounted.asked == 3


def test_a_child_that_fails_leaves_the_last_answer_and_is_told(mounted: Mounted) -> None:
    mounted.write(leaf(OLD), OLD)
    before = mounted.agrees()
    mounted.write(leaf(OLD), OLD)
    mounted.is_broken = True
    assert mounted.certificates.now_shown() == before
    assert "are not checked: no process can be started" in mounted.certificates.amiss()
    assert mounted.asked == 2  # not at each question


def test_nobody_waits_for_a_child_that_another_waits_for(mounted: Mounted) -> None:
    """Each probe would take a thread, of which the grafts need some."""
    begun, may_end, ask = threading.Event(), threading.Event(), mounted.ask

    def slow(question: bytes) -> bytes:
        begun.set()
        assert may_end.wait(DEADLINE_S)
        return ask(question)

    mounted.write(leaf(OLD), OLD)
    before = mounted.agrees()
    mounted.certificates._ask = slow
    mounted.write(leaf(OLD), OLD)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(mounted.certificates.now_shown)
        assert begun.wait(DEADLINE_S)
        second = threads.submit(mounted.certificates.now_shown)
        try:
            assert second.result(DEADLINE_S) == before
        finally:
            may_end.set()
        assert first.result(DEADLINE_S) not in (before, None)


def test_a_real_child_answers(mounted: Mounted) -> None:
    mounted.now = datetime.datetime.now(datetime.UTC)
    authority = make_authority(now=mounted.now)
    mounted.write(leaf(authority, now=mounted.now), authority)
    mounted.certificates = Certificates(mounted.directory, name=NAME)
    mounted.agrees()
    with pytest.raises(NoAnswer, match=r"status 1: .*JSONDecodeError"):
        ask_child(b"nonsense")


def test_the_agent_does_without_the_library() -> None:
    program = "import sys, devicemount_agent.__main__; sys.exit('cryptography' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
