# SPDX-License-Identifier: Apache-2.0
"""No text, however long or odd and from wherever, makes the API server refuse a status."""

import json
from typing import Any

from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from devicemount_operator.api import crd
from devicemount_operator.api import v1alpha1 as api
from devicemount_operator.decide import chain, report
from devicemount_operator.decide.observation import DeviceNode, GrantPhase
from devicemount_operator.decide.size import MAX_BYTES
from devicemount_operator.decide.text import MAX_EVENT_MESSAGE
from devicemount_operator.reasons import Reason
from unit.operator import given
from unit.operator.api import schema

SCHEMA = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
TEXTS = st.one_of(
    st.text(st.characters(), max_size=30),  # surrogates and controls too
    st.sampled_from(["", "\ud800", "\0", "\u202e", "<" * 3000, "\U0001f600" * 1500, "\n" * 700]),
)
NUMBERS = st.sampled_from([0, 1, 2**20, 2**32 - 1])
NODES = st.builds(
    DeviceNode,
    path=TEXTS,
    type=st.sampled_from(["c", "b", "", "?"]),
    major=NUMBERS,
    minor=NUMBERS,
    access=TEXTS,
)
DEVICES = st.builds(
    given.device,
    TEXTS,
    resource=TEXTS,
    health=TEXTS,
    nodes=st.lists(NODES, max_size=3).map(tuple),
    mounts=st.lists(TEXTS, max_size=3).map(tuple),
    env_file=TEXTS,
)
HOLDERS = st.builds(
    given.holder,
    st.sampled_from([-1, 0, 2**40]),
    command=TEXTS,
    pod_uid=TEXTS,
    container_id=TEXTS,
    note=TEXTS,
)
CONCERNS = st.builds(given.concern, TEXTS, TEXTS)
GRANTS = st.builds(
    given.grant,
    st.sampled_from(GrantPhase),
    devices=st.lists(DEVICES, max_size=3).map(tuple),
    container_id=TEXTS,
    concerns=st.lists(CONCERNS, max_size=3).map(tuple),
    lost=st.none() | CONCERNS,
)
SHADOWS = st.builds(
    given.shadow,
    scheduler=TEXTS,
    scheduler_text=TEXTS,
    gates=st.lists(TEXTS, max_size=2).map(tuple),
    claim=TEXTS,
    failure=TEXTS,
    failure_text=TEXTS,
    hold_text=TEXTS,
    hold_down_since=st.sampled_from([None, given.NOW - 90]),
    scheduled=st.booleans(),
    seen=st.just(given.NOW - 90),
)
REFUSALS = st.builds(
    given.refusal,
    st.sampled_from([Reason.DEVICE_BUSY, Reason.PATH_CONFLICT, Reason.NOT_ALLOWED]),
    TEXTS,
    holders=st.lists(HOLDERS, max_size=3).map(tuple),
    holders_total=st.integers(0, 10**9),
)


def check(observation: Any, said: Any) -> None:
    rendered = report.render(observation, said)
    assert rendered.status is not None
    document = {key: value for key, value in rendered.status.items() if value is not None}
    assert list(schema.faults(SCHEMA, document)) == []
    assert len(json.dumps(document, ensure_ascii=False).encode()) <= MAX_BYTES
    assert api.Status.model_validate(document).observed_generation == 1
    for event in rendered.events:
        assert len(event.message.encode("utf-8")) <= 4 * MAX_EVENT_MESSAGE
        assert len(event.message) <= MAX_EVENT_MESSAGE


@settings(max_examples=100, deadline=None)
@for_all(SHADOWS, GRANTS)
def test_of_schedulers_kubelets_and_agents(shadow: Any, grant: Any) -> None:
    agent = given.agent(grants=(grant,), container="notebook")
    observation = given.observation(target=None, shadows=(shadow,), agent=agent)
    decided = chain.decide(observation).report
    if decided is not None:
        check(observation, decided)


@settings(max_examples=100, deadline=None)
@for_all(REFUSALS, GRANTS)
def test_of_refusals_and_holders(refusal: Any, grant: Any) -> None:
    agent = given.agent(grants=(grant,), container="notebook")
    observation = given.observation(
        mount=given.mount(suspend=True), target=None, shadows=(given.shadow(),), agent=agent
    )
    decided = chain.refused(observation, refusal).report
    if decided is not None:
        check(observation, decided)
