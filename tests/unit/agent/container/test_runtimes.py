# SPDX-License-Identifier: Apache-2.0
"""Runtimes by what they say of themselves; where each answer is from, it says itself."""

import json
from pathlib import Path

import pytest

from devicemount_agent.container.runtimes import (
    UNKNOWN,
    RuntimeFacts,
    check_handler,
    check_supported,
    facts_from,
    handler_from,
)
from devicemount_agent.errors import UnsupportedRuntime

ANSWERS = sorted((Path(__file__).parents[3] / "data/runtimes").glob("*.json"))


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda path: path.stem)
def test_what_cannot_be_grafted_into_is_refused_by_name(answer: Path) -> None:
    said = json.loads(answer.read_text())
    assert said["source"]
    facts = facts_from(json.dumps(said["info"]))
    assert facts.allows_all is said["allows_all"]
    if said["refused"] is None:
        check_supported(facts)
        return
    with pytest.raises(UnsupportedRuntime) as refused:
        check_supported(facts)
    assert str(refused.value) == said["refused"]


def test_cri_o_says_a_pods_handler_of_its_sandbox_only() -> None:
    said = json.loads((ANSWERS[0].parent / "sandboxes/cri-o-kata.json").read_text())
    assert said["source"]
    handler = handler_from(json.dumps(said["info"]))
    with pytest.raises(UnsupportedRuntime) as refused:
        check_handler(handler)
    assert str(refused.value) == said["refused"]
    assert handler_from("") == handler_from("[]") == ""
    check_handler("")


@pytest.mark.parametrize(
    "info",
    ["", "{}", "[]", '{"runtimeSpec": 3}', '{"runtimeSpec": {"linux": {"resources": null}}}'],
)
def test_an_answer_of_another_shape_says_nothing(info: str) -> None:
    assert facts_from(info) == UNKNOWN


def test_the_last_rule_about_all_devices_holds() -> None:
    rules = [{"allow": True, "type": "a", "access": "rwm"}, {"allow": False, "access": "rwm"}]
    info = {"runtimeSpec": {"linux": {"resources": {"devices": rules}}}}
    assert facts_from(json.dumps(info)) == RuntimeFacts(allows_all=False)
    rules.reverse()
    assert facts_from(json.dumps(info)) == RuntimeFacts(allows_all=True)


def test_a_user_namespace_was_asked_for_or_not() -> None:
    namespaces = [{"type": "pid"}, {"type": "mount"}]
    info = {"runtimeSpec": {"linux": {"namespaces": namespaces}}}
    assert facts_from(json.dumps(info)).has_own_users is False
    namespaces.append({"type": "user", "path": "/proc/7/ns/user"})
    assert facts_from(json.dumps(info)).has_own_users is True
