# SPDX-License-Identifier: Apache-2.0
"""The agent's certificates, without the library that understands them: that is an eighth of the
agent's memory, and certificates change once in weeks.

What the files mean is asked of a child process (`identity_process`), when they differ from those
that it was asked about last, or when time may have changed its answer. While it cannot be asked,
its last answer stays.
"""

import base64
import datetime
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from devicemount_agent.logs import line, plain
from devicemount_agent_api.identity_files import DOCUMENT_LIMIT_BYTES, BadIdentity, IdentityFiles

CHILD = "devicemount_agent_api.identity_process"
TIMEOUT_S = 10.0  # it takes 0.1 s where nothing else runs
PAUSE_S = 5.0  # before a child that failed is asked again
ERROR_LIMIT = 512  # characters of what it says then, from the end

Ask: TypeAlias = Callable[[bytes], bytes]
"""Answers a question as `identity_process` does. Raises NoAnswer."""

log = logging.getLogger(__name__)


class NoAnswer(Exception):
    """The child could not be asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the agent shows, and whom it trusts, in PEM."""

    key: bytes = field(repr=False)  # for no log
    chain: bytes
    trusted: bytes


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was said last, and of what."""

    files: IdentityFiles | str  # or why they could not be read
    asked: datetime.datetime
    until: datetime.datetime | None  # None: for ever
    shown: Shown | None
    amiss: str
    known: Any = field(repr=False)  # the child's, handed back as it is

    def is_of(self, files: IdentityFiles | str, *, now: datetime.datetime) -> bool:
        """Tell whether it still holds; where the clock was set back nothing is sure."""
        return self.files == files and self.asked <= now and (not self.until or now < self.until)


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def ask_child(question: bytes) -> bytes:
    """Ask a process that ends with its answer. Waits TIMEOUT_S at most. Raises NoAnswer."""
    environment = {"PYTHONPATH": path} if (path := os.environ.get("PYTHONPATH")) else {}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", CHILD],
            input=question,
            capture_output=True,
            timeout=TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"no answer within {TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise NoAnswer(str(error)) from error
    if child.returncode:
        said = plain(child.stderr.decode(errors="replace")[-ERROR_LIMIT:], limit=2 * ERROR_LIMIT)
        raise NoAnswer(f"status {child.returncode}: {said}")
    if len(child.stdout) > DOCUMENT_LIMIT_BYTES:
        raise NoAnswer("the answer is too long")
    return child.stdout


class Certificates:
    """What is mounted in a directory, for the holder of one DNS name.

    May be asked from any thread, never raises. When something changed, who asks first takes as long
    as a child does, others no time.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        ask: Ask = ask_child,
        clock: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        self._directory = directory
        self._name = name
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._last: _Answer | None = None
        self._failure = ""
        self._failed_at = -PAUSE_S

    def now_shown(self) -> Shown | None:
        """Return what to show and whom to trust; None before there was any."""
        self._look()
        return self._last.shown if self._last else None

    def amiss(self) -> str:
        """Say why peers would not accept it, "" if they would."""
        self._look()
        if failure := self._failure:
            return f"certificates in {self._directory} are not checked: {failure}"
        return self._last.amiss if self._last else f"{self._directory} is not read yet"

    def _look(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # another asks just now: what was said last holds until there is an answer
        try:
            self._renew()
        finally:
            self._lock.release()

    def _renew(self) -> None:
        now, files = self._clock(), self._read()
        if self._last and self._last.is_of(files, now=now):
            self._failure = ""
            return
        if self._failure and time.monotonic() < self._failed_at + PAUSE_S:
            return
        try:
            self._last = self._asked(files, now=now)
        except NoAnswer as error:
            if str(error) != self._failure:
                log.error(line("could not check certificates", error=error))
            self._failure, self._failed_at = str(error), time.monotonic()
        else:
            self._failure = ""

    def _read(self) -> IdentityFiles | str:
        try:
            return IdentityFiles.from_directory(self._directory)
        except BadIdentity as error:
            return str(error)

    def _asked(self, files: IdentityFiles | str, *, now: datetime.datetime) -> _Answer:
        known = self._last.known if self._last else None
        question = {"directory": str(self._directory), "name": self._name, "known": known}
        try:
            said = json.loads(self._ask(json.dumps(question).encode()))
            return _Answer(
                files=files,
                asked=now,
                until=datetime.datetime.fromisoformat(said["next"]) if said["next"] else None,
                shown=_to_shown(said["shown"]) if said["shown"] else None,
                amiss=str(said["amiss"]),
                known=said["known"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise NoAnswer(f"the answer makes no sense ({type(error).__name__})") from error


def _to_shown(document: dict[str, str]) -> Shown:
    key, chain, trusted = (base64.b64decode(document[one]) for one in ("key", "chain", "trusted"))
    return Shown(key, chain, trusted)
