# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: one shadow pod on its way at a time, the oldest mount first, whoever asks
when."""

from dataclasses import replace
from typing import Any

import pytest

from devicemount_operator import turns as module
from devicemount_operator.caches import Shadows
from devicemount_operator.decide.observation import NodeName, Turn
from devicemount_operator.decide.split import NAMED, PartKey
from devicemount_operator.memory import Memories
from devicemount_operator.turns import Turns, Wish, Wisher
from unit.operator import given
from unit.operator.given import NODE, NOW

GPU = "volcano.sh/vgpu-number"
OTHER_NODE = NodeName("node2")


def wish(
    name: str,
    *,
    created: float = 0.0,
    was_not_placed: bool = False,
    node: NodeName = NODE,
    resource: str = GPU,
    namespace: str = "team-a",
) -> Wish:
    slots = frozenset({(node, resource)})
    rank = (was_not_placed, created, name)
    return Wish(who=Wisher(name, NAMED), namespace=namespace, rank=rank, slots=slots)


class Scene:
    """Mounts by name, each with one shadow pod at most."""

    def __init__(self) -> None:
        self.shadows = Shadows()
        self.memories = Memories()
        self.woken: list[str] = []
        self.turns = self.restarted()
        self._version = 0

    def restarted(self) -> Turns:
        """Return what a new operator begins with: the same pods and an empty line."""
        return Turns(shadows=self.shadows, memories=self.memories, wake=self.woken.append)

    def ask(self, wanted: Wish) -> str:
        return self.turns.ask(wanted, now=NOW).ahead

    def a_pass(self, wanted: Wish) -> str:
        """Ask, reserve if it is this mount's turn, end the pass."""
        ahead = self.ask(wanted)
        if not ahead:
            self.pod(wanted.who.mount_uid)
        self.turns.settle(wanted.who.mount_uid)
        return ahead

    def pod(self, name: str, **status: Any) -> None:
        self._version += 1
        self.shadows.put(
            {
                "metadata": {
                    "name": f"dm-{name}",
                    "namespace": "team-a",
                    "uid": f"pod-of-{name}",
                    "resourceVersion": str(self._version),
                    "labels": {"devicemount.io/shadow": name},
                },
                "spec": {
                    "nodeName": NODE,
                    "containers": [
                        {"name": "hold", "image": "hold", "resources": {"limits": {GPU: "1"}}}
                    ],
                },
                "status": status,
            },
            now=NOW,
        )

    def chosen(self, name: str) -> None:
        """Let the kubelet admit the pod, and the mount's pass see it."""
        self.pod(name, phase="Pending", containerStatuses=[{"name": "hold", "state": {}}])
        self.turns.settle(name)


def test_the_first_one_has_the_turn_and_the_others_wait_for_its_pod() -> None:
    scene = Scene()
    assert scene.a_pass(wish("a")) == ""
    assert scene.a_pass(wish("b")) == "shadow pod dm-a"
    scene.chosen("a")
    assert scene.woken == ["b"]
    assert scene.a_pass(wish("b")) == ""


def test_between_the_decision_and_the_answer_of_the_post_the_turn_is_taken() -> None:
    scene = Scene()
    assert scene.ask(wish("a")) == ""
    assert scene.ask(wish("b")) == "a shadow pod that is being made"
    assert scene.ask(wish("c", resource="other.io/x")) == ""
    assert scene.ask(wish("d", node=OTHER_NODE)) == ""
    assert scene.ask(wish("a")) == "", "its own claim is in nobody's way"


def test_a_pass_that_made_no_pod_lets_the_next_one_go() -> None:
    scene = Scene()
    scene.ask(wish("a"))
    scene.ask(wish("b"))
    scene.turns.settle("b")
    scene.turns.settle("a")
    assert scene.woken == ["b"]


def test_the_oldest_that_waits_is_first_whoever_asks_first() -> None:
    scene = Scene()
    scene.a_pass(wish("a", created=1))
    for name, created in (("young", 9.0), ("old", 2.0), ("middle", 5.0)):
        scene.a_pass(wish(name, created=created))
    scene.chosen("a")
    assert scene.woken == ["old"]
    said = scene.ask(wish("young", created=9))
    assert said == "another DeviceMount, which waits as well,"
    assert scene.ask(wish("old", created=2)) == ""


def test_a_tenant_with_a_long_queue_is_not_in_front_of_the_others() -> None:
    scene = Scene()
    queue = {f"{n:02}": wish(f"{n:02}", created=float(n)) for n in range(20)}
    late = wish("late", created=99, namespace="team-b")
    for wanted in (*queue.values(), late):
        scene.a_pass(wanted)
    scene.chosen("00")
    assert scene.woken == ["late"]
    assert scene.a_pass(queue["01"]) == "another DeviceMount, which waits as well,"
    assert scene.a_pass(late) == ""
    scene.woken.clear()
    scene.chosen("late")
    assert scene.woken == ["01"]


def test_namespaces_that_come_and_go_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_SERVED", 2)
    scene = Scene()
    for n in range(5):
        scene.ask(wish(str(n), namespace=f"n{n}", resource=f"other.io/{n}"))
    assert list(scene.turns._served) == ["n3", "n4"]


def test_who_could_not_be_placed_stands_behind_those_who_were_not_tried() -> None:
    scene = Scene()
    scene.a_pass(wish("a"))
    scene.a_pass(wish("greedy", created=1, was_not_placed=True))
    scene.a_pass(wish("modest", created=9))
    scene.chosen("a")
    assert scene.woken == ["modest"]


def test_who_does_not_ask_any_more_leaves_the_line() -> None:
    scene = Scene()
    scene.a_pass(wish("a"))
    scene.a_pass(wish("gone", created=1))
    scene.a_pass(wish("next", created=2))
    scene.turns.settle("gone")  # its target does not run any more
    scene.chosen("a")
    assert scene.woken == ["next"]


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({"phase": "Failed"}, id="refused by the kubelet"),
        pytest.param({"phase": "Running"}, id="running"),
    ],
)
def test_a_pod_that_the_kubelet_has_judged_is_not_on_its_way(status: dict[str, Any]) -> None:
    scene = Scene()
    scene.pod("a", **status)
    assert scene.ask(wish("b")) == ""


def test_an_agent_that_names_the_devices_ends_the_turn_before_the_pod_says_so() -> None:
    scene = Scene()
    scene.a_pass(wish("a"))
    grant = given.grant(shadow_uid="pod-of-a")
    scene.memories.of("a").answered([grant], now=NOW)
    assert scene.ask(wish("b")) == ""


def test_a_pod_of_another_resource_is_in_nobodys_way() -> None:
    scene = Scene()
    scene.pod("a")
    assert scene.ask(wish("b", resource="other.io/x")) == ""


def test_a_restarted_operator_sees_what_is_on_its_way() -> None:
    scene = Scene()
    scene.a_pass(wish("a"))
    scene.turns = scene.restarted()
    assert scene.a_pass(wish("b")) == "shadow pod dm-a"
    scene.chosen("a")
    assert scene.woken == ["b"]


def test_a_post_without_an_answer_keeps_the_turn_until_its_pod_would_have_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.time, "monotonic", lambda: NOW)
    scene = Scene()
    scene.ask(wish("a"))
    scene.turns.doubt(Wisher("a", NAMED))
    scene.turns.settle("a")
    assert scene.ask(wish("b")) == "a shadow pod that is being made"
    later = scene.turns.ask(wish("b"), now=NOW + module.DOUBT_S + 1)
    assert later.ahead == ""


def test_the_pod_that_came_of_a_post_without_an_answer_ends_the_doubt() -> None:
    scene = Scene()
    scene.ask(wish("a"))
    scene.turns.doubt(Wisher("a", NAMED))
    scene.turns.settle("a")
    scene.a_pass(wish("b"))
    scene.pod("a")
    assert scene.ask(wish("b")) == "shadow pod dm-a"
    scene.chosen("a")
    assert scene.woken == ["b"]


def test_a_pod_that_comes_before_its_post_is_given_up_leaves_no_doubt() -> None:
    scene = Scene()
    scene.ask(wish("a"))
    scene.pod("a")
    scene.turns.doubt(Wisher("a", NAMED))
    scene.turns.settle("a")
    scene.a_pass(wish("b"))
    scene.chosen("a")
    assert scene.woken == ["b"]


def test_a_post_that_is_sent_again_after_the_doubt_has_the_turn_for_its_pass_only() -> None:
    scene = Scene()
    scene.ask(wish("a"))
    scene.turns.doubt(Wisher("a", NAMED))
    scene.turns.settle("a")
    assert scene.a_pass(wish("a")) == ""
    scene.chosen("a")
    assert scene.ask(wish("b")) == ""


def test_who_holds_the_turn_is_told_that_others_wait() -> None:
    scene = Scene()
    scene.a_pass(wish("a"))
    assert scene.turns.standing(wish("a"), since=NOW) == Turn(ahead="", since=NOW, is_awaited=False)
    scene.a_pass(wish("b"))
    assert scene.turns.standing(wish("a"), since=NOW).is_awaited


def test_twenty_mounts_at_once_have_their_turns_in_order_of_age() -> None:
    scene = Scene()
    names = [f"{n:02}" for n in range(20)]
    wanted = {name: wish(name, created=float(name)) for name in names}
    went = [name for name in reversed(names) if not scene.a_pass(wanted[name])]
    assert went == ["19"], "who came first, since nobody else was there"
    while len(went) < len(names):
        scene.woken.clear()
        scene.chosen(went[-1])
        (head,) = scene.woken
        went += [name for name in wanted if name not in went and not scene.a_pass(wanted[name])]
        assert went[-1] == head
    assert went == ["19", *names[:-1]]


def test_the_target_pods_of_one_mount_have_their_turns_one_by_one() -> None:
    scene = Scene()
    parts = [Wisher("a", PartKey(name)) for name in ("p", "q")]
    first, second = (replace(wish("a"), who=who) for who in parts)
    assert scene.ask(first) == ""
    assert scene.ask(second) == "a shadow pod that is being made"
    scene.turns.settle("a")
    assert scene.woken == ["a"]
    assert scene.ask(second) == ""
