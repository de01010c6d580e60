# SPDX-License-Identifier: Apache-2.0
"""Every reason of the table is reached: decided in a situation, or asserted by a test of the agent.

A reason that nobody can come to does not pass, and neither does one that is only listed.
"""

import ast
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from devicemount_operator import act
from devicemount_operator.agents import AgentError
from devicemount_operator.api import v1alpha1 as api
from devicemount_operator.decide import report
from devicemount_operator.reasons import TABLE, Kind, Reason
from unit.operator.decide import situations
from unit.operator.decide.kstatus import Verdict, verdict

TESTS = Path(__file__).parents[3]
OF_THE_AGENT = ("unit/agent", "component/agent", "node/agent")
VERDICTS = {
    Kind.READY: Verdict.CURRENT,
    Kind.DEGRADED: Verdict.CURRENT,
    Kind.NOTE: Verdict.CURRENT,
    Kind.SUSPENDED: Verdict.CURRENT,
    Kind.WAITING: Verdict.IN_PROGRESS,
    Kind.PERMANENT: Verdict.FAILED,
}


@pytest.mark.parametrize("reason", Reason)
def test_it_is_decided_in_its_situation_and_has_the_verdict_of_its_kind(reason: Reason) -> None:
    situation = situations.of(reason)
    mount = situations.mount_of(situation)
    status = situation.status(mount)
    conditions = {c["type"]: c for c in status["conditions"]}
    match TABLE[reason].kind:
        case Kind.DEGRADED:
            assert conditions["Degraded"]["reason"] == reason.value
            assert conditions["Ready"]["reason"] == Reason.MOUNTED.value
        case Kind.NOTE:
            assert "it is so" in conditions["Ready"]["message"]
            assert "Degraded" not in conditions
        case Kind.SUSPENDED:
            assert conditions["Suspended"]["reason"] == reason.value
        case _:
            assert conditions["Ready"]["reason"] == reason.value
    seen = {"metadata": {"generation": 1}, "status": status}
    assert verdict(seen) is VERDICTS[TABLE[reason].kind]


@pytest.mark.parametrize("reason", Reason)
def test_what_is_said_already_is_neither_written_nor_told_again(reason: Reason) -> None:
    situation = situations.of(reason)
    mount = situations.mount_of(situation)
    status = {key: value for key, value in situation.status(mount).items() if value is not None}
    read_back = mount.model_copy(update={"status": api.Status.model_validate(status)})
    observation, said = situation.reported(read_back)
    later = replace(observation, wall=observation.wall + 60)
    assert report.render(later, said) == report.Rendered(None, ())


def test_only_the_agent_and_who_ends_holders_bring_a_reason_with_them() -> None:
    brought = {
        reason
        for reason, situation in situations.FOUND.items()
        if isinstance(situation.error, AgentError | act.Refused)
    }
    assert brought == {Reason.DEVICE_BUSY}


@pytest.mark.parametrize("reason", sorted(situations.TOLD_BY_AGENT, key=lambda r: r.value))
def test_what_the_agent_says_is_asserted_by_a_test_of_the_agent(reason: Reason) -> None:
    assert reason.value in asserted_of_the_agent()


@cache
def asserted_of_the_agent() -> set[str]:
    files = [file for part in OF_THE_AGENT for file in (TESTS / part).rglob("test_*.py")]
    return {word for file in files for word in asserted(file.read_text(encoding="utf-8"))}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def test_a():\n  assert x == 'A'", {"x", "A"}),
        (
            "def test_a():\n  with pytest.raises(errors.A): f('B')",
            {"pytest", "raises", "A", "errors"},
        ),
        ("@pytest.mark.parametrize('e', [A])\ndef test_a(e):\n  with pytest.raises(e): f()", {"A"}),
        ("def helper():\n  assert x == 'A'", set()),
        ("def test_a():\n  f('A')", set()),
    ],
)
def test_what_counts_as_asserted(source: str, words: set[str]) -> None:
    assert asserted(source) >= words
    if not words:
        assert not asserted(source)


def asserted(source: str) -> set[str]:
    """Return the words that a file's tests assert, expect to be raised, or are parametrized by."""
    return {
        word
        for test in ast.walk(ast.parse(source))
        if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef)
        and test.name.startswith("test_")
        for claim in _claims(test)
        for word in _words(claim)
    }


def _claims(test: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    claims = [
        node
        for node in ast.walk(test)
        if isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.raises")
    ]
    yield from claims
    if claims:
        yield from test.decorator_list


def _words(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        match part:
            case ast.Name(id=word) | ast.Attribute(attr=word):
                yield word
            case ast.Constant(value=str(word)):
                yield word
