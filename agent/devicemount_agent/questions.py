# SPDX-License-Identifier: Apache-2.0
"""Questions that may never be answered: of a driver that hangs, of a tenant's own file server.

Each is asked in a thread of its own, which is left behind when it does not come back in time. Who
left one behind is not asked again until it came back, and there is a bound for all together: so
silence costs one thread and one deadline, never the agent's own threads, nor a lock for long.
"""

from collections.abc import Callable, Hashable
from threading import Lock, Thread
from typing import Generic, TypeVar

SILENT_LIMIT = 64  # threads that are left behind

_Answer = TypeVar("_Answer")


class Unanswered(Exception):
    """No answer in time."""


class StillUnanswered(Unanswered):
    """Not asked: an earlier question has no answer yet, which was said already."""


class Questions:
    """Those of one kind."""

    def __init__(self, *, wait_s: float) -> None:
        self._wait_s = wait_s
        self._lock = Lock()
        self._silent: dict[Hashable, Thread] = {}

    def ask(self, whom: Hashable, question: Callable[[], _Answer]) -> _Answer:
        """Return the answer. Raises Unanswered, and what the question raises."""
        with self._lock:
            self._silent = {who: one for who, one in self._silent.items() if one.is_alive()}
            if whom in self._silent or len(self._silent) >= SILENT_LIMIT:
                raise StillUnanswered("an earlier question is not answered yet")
        asked = Asked(question)
        thread = Thread(target=asked.run, daemon=True)
        thread.start()
        thread.join(self._wait_s)
        if thread.is_alive():
            with self._lock:
                self._silent[whom] = thread
            raise Unanswered(f"no answer in {self._wait_s} s")
        return asked.answer()


class Asked(Generic[_Answer]):
    """A question, and what came of it."""

    def __init__(self, question: Callable[[], _Answer]) -> None:
        self._question = question
        self._answers: list[_Answer] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._answers.append(self._question())
        except BaseException as error:  # noqa: BLE001  # raised by who asked
            self._error = error

    def answer(self) -> _Answer:
        if self._error is not None:
            raise self._error
        return self._answers[0]
