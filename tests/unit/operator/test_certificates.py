# SPDX-License-Identifier: Apache-2.0
"""Whom the operator waits for before it shows a certificate of a new authority; how it writes."""

import asyncio
import datetime
from dataclasses import dataclass, field, replace

import pytest
from cryptography import x509

from devicemount_agent_api.identity import Identity, is_signed_by
from devicemount_operator import errors
from devicemount_operator.certificates import AGENTS, OPERATORS, SILENT, Own, SecretNotOurs
from devicemount_operator.cluster import ObjectKey
from devicemount_operator.handshake import Handshake
from devicemount_operator.transport import JsonObject

NOW = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
SECOND = datetime.timedelta(seconds=1)


@dataclass
class FakeCluster:
    """Secrets with the API server's preconditions; `meddle` is what another writer does first."""

    secrets: dict[str, JsonObject] = field(default_factory=dict)
    version: int = 0
    wrote: list[str] = field(default_factory=list)

    async def get_secret(self, key: ObjectKey) -> JsonObject:
        if key.name not in self.secrets:
            raise errors.NotFound(key.name)
        return self.secrets[key.name]

    async def create_secret(self, namespace: str, body: JsonObject) -> JsonObject:
        name = body["metadata"]["name"]
        if name in self.secrets:
            raise errors.AlreadyExists(name)
        return self._write(name, body)

    async def replace_secret(self, key: ObjectKey, body: JsonObject) -> JsonObject:
        now = self.secrets[key.name]["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != now:
            raise errors.Conflict(key.name)
        return self._write(key.name, body)

    def _write(self, name: str, body: JsonObject) -> JsonObject:
        self.version += 1
        self.wrote.append(name)
        meta = {**body["metadata"], "resourceVersion": str(self.version)}
        self.secrets[name] = {**body, "metadata": meta}
        return self.secrets[name]


@dataclass
class FakeAgents:
    """Agents that show what the test says; None: one that does not answer."""

    shown: dict[str, x509.Certificate | None] = field(default_factory=dict)
    used: list[Identity] = field(default_factory=list)

    def nodes(self) -> frozenset[str]:
        return frozenset(self.shown)

    def use(self, identity: Identity) -> None:
        self.used.append(identity)

    async def shake_hands(self) -> dict[str, Handshake]:
        return {node: Handshake(one) for node, one in self.shown.items()} if self.used else {}


@dataclass
class Leader:
    """One operator that leads, and its clock."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    agents: FakeAgents = field(default_factory=FakeAgents)
    now: datetime.datetime = NOW
    listed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.own = Own(
            cluster=self.cluster,  # type: ignore[arg-type]
            agents=self.agents,  # type: ignore[arg-type]
            namespace="system",
            agents_listed=self.listed,
            clock=lambda: self.now,
        )

    async def look(self) -> Identity:
        return await self.own.identity()

    async def new_authority(self) -> Identity:
        """Let the operator's Secret be deleted, after which a new authority is made."""
        del self.cluster.secrets[OPERATORS]
        identity = await self.look()
        assert not is_newest(identity)
        return identity


def is_newest(identity: Identity) -> bool:
    return is_signed_by(identity.leaf, identity.authorities[0])


async def changing() -> tuple[Leader, x509.Certificate, Identity]:
    """Return a leader within a change, the former certificate of agents, and its identity."""
    leader = Leader()
    leader.listed.set()
    await leader.look()
    former = leader.own._remembered.agents
    assert former is not None
    return leader, former.certificate, await leader.new_authority()


async def test_the_operators_secret_is_written_first_and_what_it_says_used() -> None:
    leader = Leader()
    identity = await leader.look()
    assert leader.cluster.wrote == [OPERATORS, AGENTS]
    assert leader.agents.used == [identity]
    assert await leader.look() == identity
    assert leader.cluster.wrote == [OPERATORS, AGENTS]


async def test_an_agent_that_shows_the_former_certificate_is_waited_for() -> None:
    leader, former, identity = await changing()
    leader.agents.shown = {"n1": identity.authorities[0], "n2": former}
    leader.now += 2 * SILENT
    assert not is_newest(await leader.look())


async def test_an_agent_that_is_silent_is_waited_for_a_while() -> None:
    leader, _, _ = await changing()
    leader.agents.shown = {"n1": None}
    leader.now += SILENT
    assert not is_newest(await leader.look())
    leader.now += SECOND
    assert is_newest(await leader.look())


async def test_without_agents_nobody_is_waited_for() -> None:
    leader, _, _ = await changing()
    assert is_newest(await leader.look())
    assert len((await leader.look()).authorities) == 1


async def test_agents_that_are_not_listed_yet_may_be_there() -> None:
    leader, _, _ = await changing()
    leader.listed.clear()
    assert not is_newest(await leader.look())


async def test_a_successor_that_has_not_looked_yet_knows_nothing_of_agents() -> None:
    leader, former, _ = await changing()
    successor = Leader(cluster=leader.cluster, agents=FakeAgents({"n1": former}))
    successor.listed.set()
    successor.now = NOW + 2 * SILENT
    assert not is_newest(await successor.look())


@pytest.mark.parametrize("name", [OPERATORS, AGENTS])
async def test_what_another_wrote_meanwhile_is_not_overwritten(name: str) -> None:
    leader = Leader()
    await leader.look()
    kept = replace(leader.cluster, secrets=dict(leader.cluster.secrets))
    stale = dict(
        kept.secrets[name],
        metadata={"resourceVersion": "0", "labels": kept.secrets[name]["metadata"]["labels"]},
        data={},
    )

    async def read_before(key: ObjectKey) -> JsonObject:
        return stale if key.name == name else kept.secrets[key.name]

    kept.get_secret = read_before  # type: ignore[method-assign]
    other = Leader(cluster=kept)
    with pytest.raises(errors.Conflict):
        await other.look()
    assert kept.secrets[name] == leader.cluster.secrets[name]


async def test_a_secret_without_our_label_is_somebody_elses() -> None:
    leader = Leader()
    body = {"metadata": {"resourceVersion": "1"}, "data": {}}
    leader.cluster.secrets[AGENTS] = body
    with pytest.raises(SecretNotOurs, match="devicemount-agent-tls in system was not made by"):
        await leader.look()
    assert leader.cluster.wrote == []


async def test_broken_content_is_made_anew_and_trust_is_kept() -> None:
    leader = Leader()
    before = await leader.look()
    leader.cluster.secrets[OPERATORS]["data"]["ca.key"] = "bm9uc2Vuc2U="
    after = await leader.look()
    assert before.authorities[0] in after.authorities
    assert after.authorities[0] != before.authorities[0]
    assert after.leaf == before.leaf
