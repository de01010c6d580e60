# SPDX-License-Identifier: Apache-2.0
"""What nodes say of resources: a round trip only where nothing is known, or before a no."""

import asyncio
from collections.abc import Iterable

import pytest

from devicemount_operator import facts as module
from devicemount_operator.agents import AgentError, Agents
from devicemount_operator.decide.observation import NodeName, ResourceFacts
from devicemount_operator.facts import NodeFacts
from devicemount_operator.reasons import Reason
from unit.operator import given
from unit.operator.given import NODE, RESOURCE


class Node(Agents):
    """A node whose agent counts questions and answers when `gate` is set."""

    def __init__(self, *said: ResourceFacts) -> None:
        self.said = said
        self.asked: list[tuple[str, ...]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.questioned = asyncio.Event()
        self.error: AgentError | None = None

    async def facts(self, node: NodeName, resources: Iterable[str]) -> tuple[ResourceFacts, ...]:
        self.asked.append(tuple(resources))
        self.questioned.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.said


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


async def test_what_is_known_is_given_without_asking(clock: Clock) -> None:
    node = Node(given.facts(serialised=True))
    facts = NodeFacts(node)
    for _ in range(3):
        assert await facts.of(NODE, [RESOURCE]) == (given.facts(serialised=True),)
    assert node.asked == [(RESOURCE,)]


async def test_what_is_old_is_given_at_once_and_renewed_behind_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_AFTER_S", 0.0)
    node = Node(given.facts())
    facts = NodeFacts(node)
    await facts.of(NODE, [RESOURCE])
    node.said = (given.facts(refused="MPS"),)
    clock.now += 3600
    node.gate.clear()
    assert await facts.of(NODE, [RESOURCE]) == (given.facts(),)
    assert await facts.of(NODE, [RESOURCE]) == (given.facts(),)
    node.questioned.clear()
    await asyncio.wait_for(node.questioned.wait(), 5)
    node.gate.set()
    assert await facts.fresh(NODE, [RESOURCE]) == (given.facts(refused="MPS"),)
    assert len(node.asked) == 2, "one question at a time"


async def test_a_renewal_that_comes_due_while_an_answer_is_awaited_is_not_the_last(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_AFTER_S", 0.0)
    node = Node(given.facts())
    facts = NodeFacts(node)
    await facts.of(NODE, [RESOURCE])
    clock.now += 3600
    node.gate.clear()
    slow = asyncio.ensure_future(facts.fresh(NODE, [RESOURCE]))
    await asyncio.sleep(0)
    await facts.of(NODE, [RESOURCE])
    await asyncio.sleep(0)  # the renewal comes due
    await asyncio.sleep(0)
    node.gate.set()
    await slow
    clock.now += 3600
    node.questioned.clear()
    await facts.of(NODE, [RESOURCE])
    await asyncio.wait_for(node.questioned.wait(), 5)


async def test_before_a_no_what_is_old_is_asked_for_again(clock: Clock) -> None:
    node = Node(given.facts(refused="MPS"))
    facts = NodeFacts(node)
    await facts.of(NODE, [RESOURCE])
    assert await facts.fresh(NODE, [RESOURCE]) == node.said
    assert len(node.asked) == 1
    clock.now += module.FRESH_S + 1
    node.said = (given.facts(),)
    assert await facts.fresh(NODE, [RESOURCE]) == node.said


async def test_an_agent_that_cannot_be_asked_has_no_facts(clock: Clock) -> None:
    node = Node()
    assert await NodeFacts(node).of(NODE, [RESOURCE]) == (given.facts(),)


async def test_an_agent_that_does_not_answer_is_an_error_only_where_nothing_is_known(
    clock: Clock,
) -> None:
    node = Node(given.facts())
    facts = NodeFacts(node)
    await facts.of(NODE, [RESOURCE])
    node.error = AgentError(Reason.AGENT_UNAVAILABLE, "gone")
    clock.now += 60
    assert await facts.of(NODE, [RESOURCE]) == (given.facts(),)
    with pytest.raises(AgentError):
        await facts.fresh(NODE, [RESOURCE])
    with pytest.raises(AgentError):
        await facts.of(NODE, ["a.io/b"])


async def test_twenty_mounts_at_once_ask_once() -> None:
    node = Node(given.facts())
    facts = NodeFacts(node)
    answers = await asyncio.gather(*(facts.of(NODE, [RESOURCE]) for _ in range(20)))
    assert set(answers) == {(given.facts(),)}
    assert len(node.asked) == 1


async def test_names_that_tenants_make_up_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_KNOWN", 3)
    node = Node()
    facts = NodeFacts(node)
    for n in range(10):
        await facts.of(NODE, [f"a.io/{n}"])
    await facts.of(NODE, ["a.io/9"])
    await facts.of(NODE, ["a.io/0"])
    assert len(node.asked) == 11
    await facts.close()
