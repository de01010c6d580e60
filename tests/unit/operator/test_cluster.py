# SPDX-License-Identifier: Apache-2.0
"""What is not sent: writes that the Lease does not cover, and anything while the server asks for
rest."""

from typing import Any

import pytest

from devicemount_operator import errors
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.transport import Transport

POD = ObjectKey("team-a", "dm-1")


class Sent(Transport):
    """Notes what is sent, and for how long an answer is waited for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self.refusal: errors.ApiError | None = None

    async def call(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        self.calls.append((method, given["timeout_s"]))
        if self.refusal is not None:
            raise self.refusal
        return {}


@pytest.mark.parametrize(("left_s", "timeout_s"), [(60.0, 10.0), (3.0, 3.0)])
async def test_a_write_outlives_neither_its_deadline_nor_the_lease(
    left_s: float, timeout_s: float
) -> None:
    sent = Sent()
    await Cluster(sent, timeout_s=10.0, left_s=lambda: left_s).delete_pod(POD, uid="u")
    assert sent.calls == [("DELETE", timeout_s)]


async def test_without_the_lease_one_may_only_look() -> None:
    sent = Sent()
    cluster = Cluster(sent, timeout_s=10.0, left_s=lambda: 0.0)
    for write in (cluster.delete_pod(POD, uid="u"), cluster.create_pod("team-a", {})):
        with pytest.raises(errors.LeaseLost):
            await write
    await cluster.get_pod(POD)
    assert sent.calls == [("GET", 10.0)]


async def test_a_server_that_asks_for_more_time_than_one_request_has_is_left_alone_by_all() -> None:
    sent = Sent()
    cluster = Cluster(sent, timeout_s=10.0, left_s=lambda: 60.0)
    sent.refusal = errors.TooManyRequests("busy", status=429, retry_after_s=30.0)
    with pytest.raises(errors.TooManyRequests):
        await cluster.get_pod(POD)
    sent.refusal = None
    with pytest.raises(errors.TooManyRequests) as refused:
        await cluster.create_pod("team-a", {})
    assert 29 < refused.value.retry_after_s <= 30
    assert len(sent.calls) == 1


async def test_a_server_without_a_connection_is_tried_by_one_after_the_other() -> None:
    sent = Sent()
    cluster = Cluster(sent, timeout_s=10.0, left_s=lambda: 60.0)
    sent.refusal = errors.NotConnected("refused")
    for _ in range(100):
        with pytest.raises(errors.Unreachable):
            await cluster.get_pod(POD)
    assert len(sent.calls) == 1


async def test_an_error_of_one_request_keeps_nobody_back() -> None:
    sent = Sent()
    cluster = Cluster(sent, timeout_s=10.0, left_s=lambda: 60.0)
    for sent.refusal in (errors.Unreachable("a webhook of one namespace"), errors.Conflict("old")):
        with pytest.raises(errors.ApiError):
            await cluster.create_pod("team-a", {})
    sent.refusal = None
    await cluster.create_pod("team-b", {})
    assert len(sent.calls) == 3
