# SPDX-License-Identifier: Apache-2.0
"""Who does not answer costs one thread and one deadline."""

from collections.abc import Iterator
from threading import Event, active_count

import pytest

from devicemount_agent import questions
from devicemount_agent.questions import Questions, Unanswered


@pytest.fixture
def answered() -> Iterator[Event]:
    event = Event()
    yield event
    event.set()


def test_an_answer_and_an_error_come_back_as_they_are() -> None:
    asked = Questions(wait_s=10)
    assert asked.ask("a", lambda: 7) == 7
    with pytest.raises(KeyError):
        asked.ask("a", lambda: {}["b"])


def test_who_is_silent_is_not_asked_again_until_the_answer_came(answered: Event) -> None:
    asked, before = Questions(wait_s=0.02), active_count()
    for reason in ("no answer in", "an earlier question", "an earlier question"):
        with pytest.raises(Unanswered, match=reason):
            asked.ask("silent", lambda: answered.wait(10))
    assert active_count() == before + 1
    assert asked.ask("other", lambda: 7) == 7
    left = asked._silent["silent"]
    answered.set()
    left.join(10)
    assert asked.ask("silent", lambda: 7) == 7


def test_the_silent_are_bounded_together(answered: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "SILENT_LIMIT", 2)
    asked, before = Questions(wait_s=0.02), active_count()
    for who in range(4):
        with pytest.raises(Unanswered):
            asked.ask(who, lambda: answered.wait(10))
    assert active_count() == before + 2
