# SPDX-License-Identifier: Apache-2.0
"""Ends holders of a device, in rounds: TERM at first sight, KILL from a given moment on.

Only those that surely block, and never a process of the node. By pidfd, opened before the process
is looked at once more, so that the signal can reach nobody else. No round waits for a grace to
pass: who calls may hold the pod's lock. A process that KILL does not end (it waits in the kernel,
state D) gets another one every few seconds at most, and is named.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace

from devicemount_agent.container.cgroup import owner_of
from devicemount_agent.holders.describe import start_time, states
from devicemount_agent.holders.hidden import hidden
from devicemount_agent.holders.looks import STOPPED_WAIT_S
from devicemount_agent.holders.process import (
    held,
    may_have,
    mount_namespaces,
    mounted,
    patient,
    wanted,
)
from devicemount_agent.holders.search import (
    LOOKS,
    Found,
    Question,
    Sighting,
    find,
    sightings,
    used,
)
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import PodUID

TERM_WAIT_S = 1.0  # who ends at once is not seen again
STRIKE_S = 0.5  # most end within a millisecond; the rounds that follow wait for the others
DEADLINE_S = 5.0  # a process that survives it is stuck in the kernel (state D)
KILL_PAUSE_S = 10.0
BATCH = 256  # pidfds at a time

MAIN = "main process: includeMainProcess is false"
FOREIGN = "another pod: never signalled"
ASKED = "TERM sent"
KILLED = "KILL sent"
STUCK = "state D: KILL does not end it"

_Identity = tuple[int, int]  # pid and start time

# Stops the target pod, and gives the processes in it: none comes or goes in the block.
Stopped = Callable[[], AbstractContextManager[Iterable[int]]]


@dataclass(frozen=True, slots=True)
class Terms:
    """Who is ended, and how."""

    kill_at: float  # time.monotonic(): KILL from then on, TERM before
    pods: frozenset[PodUID] | None = None  # whose processes; None: every pod's
    spared: frozenset[int] = frozenset()  # pids on the node

    def include(self, one: Found) -> bool:
        in_pods = one.pod_uid is not None and (self.pods is None or one.pod_uid in self.pods)
        return one.blocking and one.is_sure and in_pods and one.pid not in self.spared


class Ending:
    """The end of who holds the devices of one grant. Used by one thread at a time."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self._asked: set[_Identity] = set()  # by TERM
        self._killed: dict[_Identity, float] = {}

    def round(
        self, question: Question, terms: Terms, *, stopped: Stopped | None = None
    ) -> tuple[Sighting, ...]:
        """Signal who is due, search again until nobody is; return who is left then."""
        deadline = time.monotonic() + DEADLINE_S
        if stopped is not None and time.monotonic() >= terms.kill_at:
            self._kill_stopped(question, terms, stopped, until=deadline)
        has_signalled = False  # however long a tenant makes the search last, it is not for nothing
        while True:
            found = list(find(question))
            identities = {one.pid: _identity(one) for one in found}
            self._forget_all_but(identities.values())
            due = [one for one in found if self._is_due(one, identities[one.pid], terms)][:BATCH]
            if not due or (has_signalled and time.monotonic() >= deadline):
                noted = (self._noted(one, identities[one.pid], terms) for one in found)
                return sightings(question, list(noted))
            self._signal(question, due, deadline=deadline, kill_at=terms.kill_at)
            has_signalled = True

    def strike(self, question: Question, stopped: Stopped) -> None:
        """Kill in the target pod only, which takes no search of the node."""
        until = time.monotonic() + STRIKE_S
        self._kill_stopped(question, Terms(kill_at=0.0), stopped, until=until)

    def _kill_stopped(
        self, question: Question, terms: Terms, stopped: Stopped, *, until: float
    ) -> None:
        """Kill where nobody can get away: who goes on from child to child is never met else."""
        with ExitStack() as stack:
            pidfds: list[int] = []
            with stopped() as pids:
                for one in find(question, among=pids):
                    if not self._is_due(one, _identity(one), terms):
                        continue
                    with ExitStack() as own, suppress(FileNotFoundError, ProcessLookupError):
                        pidfd = own.enter_context(closing(os.pidfd_open(one.pid)))
                        if _is_still(question, one):
                            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                            self._killed[_identity(one)] = time.monotonic()
                        if len(pidfds) < BATCH:
                            pidfds.append(pidfd)
                            stack.push(own.pop_all())
            for pidfd in pidfds:
                _wait(pidfd, timeout_s=max(0.0, until - time.monotonic()))

    def _is_due(self, one: Found, identity: _Identity, terms: Terms) -> bool:
        if not terms.include(one):
            return False
        now = time.monotonic()
        if now < terms.kill_at:
            return identity not in self._asked
        return now - self._killed.get(identity, -KILL_PAUSE_S) >= KILL_PAUSE_S

    def _signal(
        self, question: Question, due: Iterable[Found], *, deadline: float, kill_at: float
    ) -> None:
        """Signal all of them, then wait for their ends."""
        now = time.monotonic()
        number = signal.SIGKILL if now >= kill_at else signal.SIGTERM
        until = deadline if number is signal.SIGKILL else min(deadline, now + TERM_WAIT_S)
        with ExitStack() as stack:
            pidfds = []
            for one in due:
                with suppress(FileNotFoundError, ProcessLookupError):
                    pidfd = stack.enter_context(closing(os.pidfd_open(one.pid)))
                    identity = _identity(one)
                    if _is_still(question, one):
                        signal.pidfd_send_signal(pidfd, number)
                        pidfds.append(pidfd)
                    self._asked.add(identity)
                    if number is signal.SIGKILL:
                        self._killed[identity] = now
            for pidfd in pidfds:
                _wait(pidfd, timeout_s=max(0.0, until - time.monotonic()))

    def _noted(self, one: Found, identity: _Identity, terms: Terms) -> Found:
        if one.blocking and one.pid in terms.spared:
            note = MAIN
        elif one.blocking and not terms.include(one):
            note = FOREIGN
        elif identity in self._killed:
            note = STUCK if "D" in states(one.pid) else KILLED
        else:
            note = ASKED if identity in self._asked else ""
        return replace(one, note="; ".join(filter(None, (note, one.note))))

    def _forget_all_but(self, identities: Iterable[_Identity]) -> None:
        kept = set(identities)
        self._asked &= kept
        self._killed = {one: when for one, when in self._killed.items() if one in kept}


def _identity(one: Found) -> _Identity:
    """Return what no other process has had; of one that has ended, a start time of 0."""
    with suppress(FileNotFoundError, ProcessLookupError):
        (started,) = LOOKS.at((one.pid,), start_time, wait_s=STOPPED_WAIT_S)
        return one.pid, started
    return one.pid, 0


def _is_still(question: Question, one: Found) -> bool:
    """Say whether the process with this pid is (still) the holder that was found."""
    return any(LOOKS.at((one.pid,), lambda _: _has_still(question, one), wait_s=STOPPED_WAIT_S))


def _has_still(question: Question, one: Found) -> bool:
    tasks = patient(mount_namespaces)(one.pid).values()
    owners = {owner_of(task, root=question.cgroup_root) for task in tasks}
    if (one.pod_uid, one.container_id) not in owners:
        return False
    users = question.users(question.numbers)
    devices = wanted(question.numbers)
    if used(users, one.pid) or held(one.pid, devices):
        return True
    if any(mounted(task, question.numbers) for task in tasks):
        return True
    return bool(one.note and (hidden(one.pid) or may_have(one.pid, devices)))


def _wait(pidfd: int, *, timeout_s: float) -> None:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll(timeout_s * 1000)
