# SPDX-License-Identifier: Apache-2.0
"""What is tried when a namespace refuses a shadow pod, and what is said when nothing helps."""

import asyncio
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from devicemount_operator import errors, posting
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide.observation import PriorityClass
from devicemount_operator.errors import ForbiddenBy
from devicemount_operator.posting import Poster, Wanted
from devicemount_operator.settings import Settings
from devicemount_operator.transport import JsonObject, api_error
from unit.operator import given

SETTINGS = Settings(
    namespace="devicemount-system",
    identity="test",
    hold_image="localhost/devicemount-hold:dev",
    tls_directory=Path("/nonexistent"),
)
MINIMUM = {"spec": {"limits": [{"type": "Container", "min": {"memory": "64Mi"}}]}}

Rule = Callable[[JsonObject], str]  # the refusal's sentence; empty: it passes


@dataclass
class Namespace:
    """Stands in for the API server: rules that a pod has to pass, and what was asked."""

    rules: list[Rule] = field(default_factory=list)
    limit_ranges: list[JsonObject] = field(default_factory=list)
    mutate: Callable[[JsonObject], None] = lambda pod: None
    posts: list[JsonObject] = field(default_factory=list)
    lists: int = 0
    deleted: list[str] = field(default_factory=list)

    async def create_pod(self, namespace: str, body: JsonObject) -> JsonObject:
        self.posts.append(body)
        for rule in self.rules:
            if sentence := rule(body):
                status = {"reason": "Forbidden", "message": f'pods "dm" is forbidden: {sentence}'}
                raise api_error(403, status, {})
        made = copy.deepcopy(body)
        made["metadata"]["uid"] = str(given.SHADOW_UID)
        self.mutate(made)
        return made

    async def list_limit_ranges(self, namespace: str) -> list[JsonObject]:
        self.lists += 1
        return self.limit_ranges

    async def delete_pod(self, key: ObjectKey, *, uid: str) -> None:
        self.deleted.append(uid)


def hold(pod: JsonObject) -> JsonObject:
    return dict(pod["spec"]["containers"][0]["resources"])


def at_least_64(pod: JsonObject) -> str:
    if hold(pod)["requests"]["memory"] == "64Mi":
        return ""
    return "minimum memory usage per Container is 64Mi, but request is 32Mi"


def no_class_p(pod: JsonObject) -> str:
    named = pod["spec"].get("priorityClassName") == "p"
    return "no PriorityClass with name p was found" if named else ""


def default_of(computed: int) -> Rule:
    def rule(pod: JsonObject) -> str:
        asked = pod["spec"].get("priority")
        if "priorityClassName" in pod["spec"] or asked in (None, computed):
            return ""
        return (
            f"the integer value of priority ({asked}) must not be provided in pod spec; priority "
            f"admission controller computed {computed} from the given PriorityClass name"
        )

    return rule


def wanted(**target: Any) -> Wanted:
    return Wanted(
        mount=given.mount(),
        target=given.target(**target),
        resources={given.RESOURCE: 1},
        priority_class=None,
    )


def poster(namespace: Namespace) -> Poster:
    return Poster(cluster=cast("Cluster", namespace), settings=SETTINGS)


def post(namespace: Namespace, asked: Wanted) -> JsonObject:
    made = asyncio.run(poster(namespace).post(asked, 0))
    assert made is not None
    return made


def test_a_namespace_without_rules_is_asked_once() -> None:
    namespace = Namespace()
    post(namespace, wanted())
    assert (len(namespace.posts), namespace.lists) == (1, 0)


def test_a_limit_range_is_learnt_once_and_remembered() -> None:
    namespace = Namespace(rules=[at_least_64], limit_ranges=[MINIMUM])
    asked = poster(namespace)
    asyncio.run(asked.post(wanted(), 0))
    asyncio.run(asked.post(wanted(), 1))
    assert [hold(pod)["requests"]["memory"] for pod in namespace.posts] == ["32Mi", "64Mi", "64Mi"]
    assert namespace.lists == 1


def test_a_limit_range_that_is_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = Namespace(rules=[at_least_64], limit_ranges=[MINIMUM])
    asked = poster(namespace)
    asyncio.run(asked.post(wanted(), 0))
    namespace.rules.clear()
    later = time.monotonic() + posting.REMEMBERED_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    asyncio.run(asked.post(wanted(), 1))
    assert hold(namespace.posts[-1])["requests"]["memory"] == "32Mi"


def test_a_rule_that_no_size_meets_is_said_in_its_words() -> None:
    namespace = Namespace(rules=[lambda pod: "maximum x.io/y usage per Container is 1"])
    with pytest.raises(errors.Forbidden, match="maximum x") as refused:
        post(namespace, wanted())
    assert refused.value.by is ForbiddenBy.LIMITS
    assert len(namespace.posts) == 1


def test_a_quota_without_room_costs_one_request() -> None:
    namespace = Namespace(rules=[lambda pod: "exceeded quota: q, requested: pods=1"])
    with pytest.raises(errors.Forbidden, match="exceeded quota: q"):
        post(namespace, wanted())
    assert (len(namespace.posts), namespace.lists) == (1, 0)


@pytest.mark.parametrize(
    ("target", "rules", "expected"),
    [
        pytest.param(
            {"priority_class": "p", "priority": 1000},
            [no_class_p, default_of(0)],
            {"priority": 0},
            id="its class is gone: priority 0",
        ),
        pytest.param(
            {"priority_class": "p", "priority": 1000},
            [no_class_p, default_of(500)],
            {"priority": 500},
            id="its class is gone and the default is below it",
        ),
        pytest.param(
            {"priority": 700},
            [default_of(0)],
            {"priority": 0},
            id="the default that it came by is gone",
        ),
    ],
)
def test_priority_follows_what_is_left_and_never_exceeds_the_targets(
    target: dict[str, Any], rules: list[Rule], expected: dict[str, Any]
) -> None:
    spec = post(Namespace(rules=rules), wanted(**target))["spec"]
    assert {key: value for key, value in spec.items() if key.startswith("priority")} == expected


@pytest.mark.parametrize(
    ("target", "rules", "words"),
    [
        pytest.param(
            {"priority": 0},
            [default_of(5000)],
            "pods without a PriorityClass get a priority above 0",
            id="a default above it",
        ),
        pytest.param(
            {"priority_class": "p", "priority": 1000},
            [no_class_p, default_of(5000)],
            "PriorityClass p of pod notebook-0 does not exist any more",
            id="its class is gone and the default is above it",
        ),
    ],
)
def test_a_default_above_the_targets_priority_is_explained(
    target: dict[str, Any], rules: list[Rule], words: str
) -> None:
    namespace = Namespace(rules=rules)
    with pytest.raises(errors.Forbidden, match=words) as refused:
        post(namespace, wanted(**target))
    assert "computed 5000" in str(refused.value)
    assert all(pod["spec"].get("priority", 0) <= 1000 for pod in namespace.posts)


def test_a_class_that_the_mount_names_is_not_exchanged() -> None:
    asked = replace(wanted(), priority_class=PriorityClass(name="p", value=5))
    namespace = Namespace(rules=[no_class_p])
    with pytest.raises(errors.Forbidden, match="no PriorityClass with name p"):
        post(namespace, asked)
    assert len(namespace.posts) == 1


def test_a_pod_whose_request_was_taken_away_is_no_reservation() -> None:
    def strip(pod: JsonObject) -> None:
        for of in hold(pod).values():
            of.pop(given.RESOURCE, None)

    namespace = Namespace(mutate=strip)
    with pytest.raises(errors.RequestTaken, match=f"only 0 of 1 {given.RESOURCE}"):
        post(namespace, wanted())
    assert namespace.deleted == [given.SHADOW_UID]


class Taken(Namespace):
    """Has a pod of that name already."""

    def __init__(self, existing: JsonObject) -> None:
        super().__init__()
        self._existing = existing

    async def create_pod(self, namespace: str, body: JsonObject) -> JsonObject:
        raise errors.AlreadyExists("there is one", status=409)

    async def get_pod(self, key: ObjectKey) -> JsonObject:
        return self._existing


def adopted(*, made_for: str) -> JsonObject | None:
    """Post for a target where such a pod stands already."""
    namespace = Namespace()
    post(namespace, wanted(uid=made_for))
    return asyncio.run(poster(Taken(namespace.posts[0])).post(wanted(), 0))


def test_a_pod_that_exists_is_taken_up() -> None:
    assert adopted(made_for=given.TARGET_UID) is not None


def test_a_pod_of_a_target_whose_uid_begins_alike_is_not_taken_up() -> None:
    assert adopted(made_for=f"{given.TARGET_UID[:8]}-another") is None
