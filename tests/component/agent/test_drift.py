# SPDX-License-Identifier: Apache-2.0
"""What somebody takes from a container is given back, counted and said; nothing else is."""

import asyncio
import errno
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicemount_agent import metrics
from devicemount_agent.__main__ import Agent
from devicemount_agent.container import cgroup
from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.container.find import Container
from devicemount_agent.errors import TargetNotRunning
from devicemount_agent.graft import graft
from devicemount_agent.graft.standing import Standing
from devicemount_agent.watchers import drift, stir
from devicemount_agent_api.v1 import agent_pb2 as pb
from node.agent import programs
from node.agent.containers import HIERARCHIES, NULL, Lab, lab
from node.agent.wipers import Systemd

from .conftest import RESOURCE, Node, Target
from .test_health import VCSU, Card, allowed, card, reserved
from .test_mount import can_open, seen, until

__all__ = ["card"]

ALLOW_NULL = programs.allow_list([NULL])
ON_V2 = pytest.mark.parametrize("hierarchy", [CgroupVersion.V2], indirect=True, ids=["v2"])


@pytest.fixture(params=list(CgroupVersion), ids=lambda version: version.value)
def hierarchy(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lab]:
    version: CgroupVersion = request.param
    if os.geteuid() != 0 or not HIERARCHIES[version].is_dir():
        pytest.skip(f"needs root and a cgroup {version.value} hierarchy")
    with lab(version, tmp_path) as made:
        for function in (
            cgroup.container_cgroup,
            cgroup.owner_of,
            cgroup.pod_cgroup,
            cgroup.process_cgroup,
        ):
            monkeypatch.setitem(function.__kwdefaults__, "root", made.root)
        yield made


class Wiper:
    """Takes whatever was granted to a container, as systemd does it."""

    def __init__(self, node: Node, target: Target) -> None:
        self._cgroup = target.box.cgroup
        self._systemd = Systemd(node.lab, target.box.cgroup.path)

    def wipe(self) -> None:
        if self._cgroup.version is CgroupVersion.V2:
            self._systemd.reload()
            return
        (self._cgroup.path / "devices.deny").write_text("a")
        for rule in ("c *:* m", "b *:* m", "c 1:3 rwm"):
            (self._cgroup.path / "devices.allow").write_text(rule)


async def swept(agent: Agent) -> None:
    """Let it look at least once more, and repair what it sees."""
    await agent.drift.sweep()
    await agent.drift.finish()


async def figures(node: Node) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.settings.health_port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: agent\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return text


def counted() -> float:
    return sum(count for *_, count in metrics.drift_repairs.samples())


async def test_what_is_taken_is_given_back_and_counted(node: Node) -> None:
    target, before = node.target(), counted()
    wiper = Wiper(node, target)
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        for times in (1, 2, 3):
            wiper.wipe()
            assert not can_open(target, "vcs1")
            await until(lambda: can_open(target, "vcs1"), "it is given back")
            await until(lambda times=times: counted() - before == times, "it is counted")
        state = await seen(node, pb.GRANTED)  # said after a look from inside
        assert state.shadow_pods[0].repairs == 3
        said = await figures(node)
        assert "text/plain; version=0.0.4" in said
        assert f"\ndevicemount_drift_repairs_total {counted():g}\n" in said
        await node.remove(target)
        assert not can_open(target, "vcs1")


async def test_what_is_taken_is_noticed_by_what_tells_of_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stir, "CALM_S", math.inf)
    await taken_and_given_back(node)


async def test_what_is_taken_is_noticed_where_nothing_tells_of_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a program that was loaded long before it is attached."""
    monkeypatch.setattr(stir.Stir, "_is_told", lambda _: False)
    await taken_and_given_back(node)


async def taken_and_given_back(node: Node) -> None:
    target = node.target()
    wiper = Wiper(node, target)
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        for _ in range(2):
            wiper.wipe()
            assert not can_open(target, "vcs1")
            async with asyncio.timeout(5):
                await until(lambda: can_open(target, "vcs1"), "it is given back")


async def test_our_own_grants_are_no_repairs(node: Node) -> None:
    target, before = node.target(), counted()
    async with node.agent() as agent:
        for ordinal, device in enumerate(("vcs1", "vcsa1", "vcsu1")):
            target.mount_uid = f"{ordinal}1111111-aaaa-4aaa-8aaa-111111111111"
            await node.apply(target, node.reserved(target, device, ordinal=ordinal))
            await swept(agent)
        await node.remove(target)
        await swept(agent)
        assert counted() == before


@ON_V2
async def test_a_pod_that_is_worked_on_delays_no_other(node: Node) -> None:
    stuck, other = node.target("stuck-0"), node.target("other-0")
    async with node.agent() as agent:
        for target, device in ((stuck, "vcs1"), (other, "vcsa1")):
            await node.apply(target, node.reserved(target, device))
        async with agent.grafts.lock(stuck.box.pod_uid):
            for target in (stuck, other):
                Wiper(node, target).wipe()
            await until(lambda: can_open(other, "vcsa1"), "the other is repaired")
            assert not can_open(stuck, "vcs1")
        await until(lambda: can_open(stuck, "vcs1"), "this one too, when it is its turn")


@ON_V2
async def test_a_cgroup_that_moves_while_it_is_repaired_is_repaired_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd as init moves its main process: the way down to it is gone for a moment."""
    target, permit = node.target(), graft.permit

    def missed(container: Container, *args: object, **wanted: object) -> Standing | None:
        monkeypatch.setattr(graft, "permit", permit)
        raise TargetNotRunning("the cgroup is gone")

    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        monkeypatch.setattr(graft, "permit", missed)
        Wiper(node, target).wipe()
        await until(lambda: can_open(target, "vcs1"), "it is given back")


@ON_V2
async def test_a_cgroup_that_moves_before_it_is_looked_at_is_found_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, eye = node.target(), drift.Eye

    def missed(*_: object) -> None:
        monkeypatch.setattr(drift, "Eye", eye)
        raise FileNotFoundError("the leaf is gone")

    monkeypatch.setattr(drift, "Eye", missed)
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        await until(lambda: drift.Eye is eye, "it is looked for")
        Wiper(node, target).wipe()
        await until(lambda: can_open(target, "vcs1"), "it is given back")


@ON_V2
async def test_one_of_which_nobody_knows_how_it_stands_is_repaired(node: Node) -> None:
    """As after a change in the same container that failed half-way."""
    target = node.target()
    async with node.agent() as agent:
        await node.apply(target, node.reserved(target, "vcs1"))
        Wiper(node, target).wipe()
        agent.grafts.standing.clear()
        await until(lambda: can_open(target, "vcs1"), "it is given back")


async def test_what_is_lost_is_never_given_back(node: Node) -> None:
    target = node.target()
    kept, lost = node.reserved(target, "vcs1"), node.reserved(target, "vcsa1", ordinal=1)
    async with node.agent() as agent:
        await node.apply(target, kept, lost)
        node.choose(node.shadow(node.target("thief-0")), "vcsa1")
        await until(lambda: not can_open(target, "vcsa1"), "the loss is handled")
        Wiper(node, target).wipe()
        await swept(agent)
        await until(lambda: can_open(target, "vcs1"), "what is left is given back")
        assert not can_open(target, "vcsa1")


@ON_V2
async def test_what_is_withheld_is_not_given_back(node: Node, card: Card) -> None:
    target = node.target()
    async with node.agent() as agent:
        await node.apply(target, reserved(node, target, card))
        card.unplug()
        node.kubelet.healthy(RESOURCE, "card-1")
        await until(lambda: not allowed(target, VCSU), "it is withheld")
        Wiper(node, target).wipe()
        await swept(agent)
        assert not allowed(target, VCSU)


@ON_V2
async def test_one_that_cannot_be_repaired_is_said_and_repaired_when_it_can(node: Node) -> None:
    target = node.target()
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        path = target.box.cgroup.path
        foreign = node.lab.keep(programs.attach(path, programs.calling(), name="vendor"))
        (shadow,) = (await seen(node, pb.WAITING)).shadow_pods
        (concern,) = shadow.concerns
        assert concern.reason == "FilterBlocked"
        assert concern.message.endswith("cannot be replaced: it calls a function")
        assert f"(vendor) of {path}" in concern.message
        programs.detach(path, foreign)
        (shadow,) = (await seen(node, pb.GRANTED)).shadow_pods
        assert not shadow.concerns
        assert can_open(target, "vcs1")


async def test_one_whose_filter_changes_faster_than_it_is_repaired_is_not_called_usable(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, permit = node.target(), graft.permit

    def outrun(*_: object, **wanted: object) -> None:
        raise OSError(errno.EAGAIN, "the device filter keeps changing", "a cgroup")

    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        monkeypatch.setattr(graft, "permit", outrun)
        Wiper(node, target).wipe()
        (shadow,) = (await seen(node, pb.WAITING)).shadow_pods
        (concern,) = shadow.concerns
        assert "the device filter keeps changing" in concern.message
        monkeypatch.setattr(graft, "permit", permit)
        (shadow,) = (await seen(node, pb.GRANTED)).shadow_pods
        assert not shadow.concerns
        assert can_open(target, "vcs1")


@ON_V2
async def test_a_cgroup_that_is_made_and_filtered_later_is_found(node: Node) -> None:
    target = node.target()
    nested = target.box.cgroup.path / "nested/deeper"
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        node.lab.make(nested)
        node.lab.keep(programs.attach(nested, ALLOW_NULL))
        await until(lambda: names(nested) == ["devicemount"], "its filter is wrapped")
        state = await node.remove(target)
        assert (state.phase, names(nested)) == (pb.REMOVED, [""]), str(state)


def names(level: Path) -> list[str]:
    return [info.name for info in programs.attached(level)]


async def test_an_ancestor_that_denies_is_named_until_it_does_not(node: Node) -> None:
    target = node.target()
    above = target.box.cgroup.path.parent
    async with node.agent():
        await node.apply(target, node.reserved(target, "vcs1"))
        if node.lab.version is CgroupVersion.V2:
            denying = node.lab.keep(programs.attach(above, ALLOW_NULL))
        else:
            (above / "devices.deny").write_text("c 7:1 rw")
        (shadow,) = (await seen(node, pb.WAITING)).shadow_pods
        (concern,) = shadow.concerns
        assert concern.reason == "FilterBlocked"
        assert str(above) in concern.message
        if node.lab.version is CgroupVersion.V2:
            programs.detach(above, denying)
        else:
            (above / "devices.allow").write_text("c 7:1 rw")
        await seen(node, pb.GRANTED)
        assert can_open(target, "vcs1")


@ON_V2
@pytest.mark.parametrize("due", ["BURST_S", "BURST_LIMIT_S"], ids=["it is over", "it goes on"])
async def test_a_burst_is_logged_when_it_begins_and_when_it_is_over(
    node: Node, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, due: str
) -> None:
    target = node.target()
    wiper = Wiper(node, target)
    caplog.set_level(logging.WARNING)

    def said(what: str) -> list[str]:
        return [record.message for record in caplog.records if record.message.startswith(what)]

    async with node.agent() as agent:
        await node.apply(target, node.reserved(target, "vcs1"))
        before = counted()
        for times in (1, 2, 3):
            wiper.wipe()
            await until(lambda times=times: counted() - before == times, "it is repaired")
        assert len(said("repaired mount=")) == 1
        monkeypatch.setattr(drift, due, 0.0)
        await swept(agent)
        (summary,) = said("repaired repeatedly")
        assert "times=3" in summary


@ON_V2
async def test_the_end_of_a_container_is_no_drift(node: Node) -> None:
    target, before = node.target(), counted()
    async with node.agent() as agent:
        await node.apply(target, node.reserved(target, "vcs1"))
        target.box.inside.process.kill()
        await seen(node, pb.TARGET_ENDED)
        await swept(agent)
        assert counted() == before
