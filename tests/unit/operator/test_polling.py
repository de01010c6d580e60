# SPDX-License-Identifier: Apache-2.0
"""An agent that says nothing for too long makes its mounts doubtful, once."""

from devicemount_operator.agents import Agents, Deadlines
from devicemount_operator.decide.observation import Grant, GrantPhase, NodeName, Place, PodUID
from devicemount_operator.election import Epoch
from devicemount_operator.memory import Memories
from devicemount_operator.polling import SILENT_S, Poller

NODE = NodeName("node1")


def test_silence_is_waited_out_and_then_told() -> None:
    memories, woken = Memories(), list[str]()
    poller = Poller(
        agents=Agents(
            epoch=Epoch(lease_created_ns=0, lease_uid="", transitions=0),
            port=1,
            deadlines=Deadlines(apply_s=1.0, remove_s=1.0, list_s=1.0),
        ),
        memories=memories,
        interval_s=1.0,
        wake=woken.append,
    )
    grant = Grant(
        shadow_uid=PodUID("shadow"),
        shadow_name="dm",
        place=Place(node=NODE, target_uid=PodUID("target")),
        phase=GrantPhase.GRANTED,
        devices=(),
        holders=(),
        holders_total=0,
        container_id=None,
        granted_wall=None,
        timings_ms={},
    )
    memories.of("mount").answered([grant], now=0.0)
    for now in (0.0, SILENT_S):
        poller.doubt_the_silent(frozenset({NODE}), now=now)
        assert woken == []
    for now in (SILENT_S + 1, SILENT_S + 2):
        poller.doubt_the_silent(frozenset({NODE}), now=now)
        assert woken == ["mount"]
