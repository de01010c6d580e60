# SPDX-License-Identifier: Apache-2.0
"""Who holds the Lease when, by whose clock, and how it is given back."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from devicemount_operator import errors
from devicemount_operator.cluster import Leases, ObjectKey
from devicemount_operator.election import Election, LeaseTimes, epoch_of

TIMES = LeaseTimes(duration_s=15, renew_deadline_s=10, retry_s=0.001, watch_s=0.001)


class OneLease(Leases):
    """The API server's copy. Each look at it takes a second."""

    def __init__(self, **spec: Any) -> None:
        meta = {"uid": "lease", "creationTimestamp": "2026-11-26T07:00:00Z"}
        self.lease: dict[str, Any] = {"metadata": {**meta, "resourceVersion": "1"}, "spec": spec}
        self.now = 100.0
        self.looks = 0
        self.then: dict[int, Callable[[], None]] = {}  # what others do before which look
        self.is_there = True
        self.is_down = False

    def clock(self) -> float:
        return self.now

    async def get(self, key: ObjectKey) -> dict[str, Any]:
        self.looks += 1
        self.now += 1
        self.then.get(self.looks, lambda: None)()
        if self.is_down:
            raise errors.Unreachable("down")
        if not self.is_there:
            raise errors.NotFound("no Lease", status=404)
        return self.lease

    async def create(self, key: ObjectKey, spec: dict[str, Any]) -> dict[str, Any]:
        meta = {"uid": "another", "creationTimestamp": "2026-11-26T08:00:00Z"}
        self.lease = {"metadata": {**meta, "resourceVersion": "50"}, "spec": spec}
        self.is_there = True
        return self.lease

    def delete(self) -> None:
        self.is_there = False

    def renew(self) -> None:
        self.write(self.lease["spec"])

    async def replace(self, key: ObjectKey, body: dict[str, Any]) -> dict[str, Any]:
        if not self.is_there:
            raise errors.Conflict("Precondition failed: UID in precondition", status=409)
        version = self.lease["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != version:
            raise errors.Conflict("changed", status=409)
        self.write(body["spec"])
        return self.lease

    def write(self, spec: dict[str, Any]) -> None:
        version = str(int(self.lease["metadata"]["resourceVersion"]) + 1)
        metadata = {**self.lease["metadata"], "resourceVersion": version}
        self.lease = {"metadata": metadata, "spec": spec}


def candidate(leases: OneLease) -> Election:
    return Election(leases, namespace="system", identity="we", times=TIMES, clock=leases.clock)


@pytest.mark.parametrize("holder", [None, "", "we"])
async def test_what_nobody_else_holds_is_taken_at_once(holder: str | None) -> None:
    leases = OneLease(holderIdentity=holder, leaseTransitions=4)
    epoch = await candidate(leases).acquire(asyncio.Event())
    assert leases.looks == 1
    assert epoch is not None
    assert epoch.transitions == 5


async def test_another_s_lease_is_valid_as_long_as_it_changes_by_our_own_clock() -> None:
    leases = OneLease(holderIdentity="another", renewTime="2020-01-01T00:00:00Z")
    leases.then[10] = leases.renew
    await candidate(leases).acquire(asyncio.Event())
    assert leases.looks == 10 + TIMES.duration_s


async def test_one_that_is_given_back_is_taken_at_the_next_look() -> None:
    leases = OneLease(holderIdentity="another")
    leases.then[3] = lambda: leases.write({"holderIdentity": None})
    await candidate(leases).acquire(asyncio.Event())
    assert leases.looks == 3


async def test_a_lease_that_is_deleted_ends_nothing_for_who_holds_it() -> None:
    leases = OneLease(holderIdentity="another", leaseTransitions=7)
    before = epoch_of(leases.lease)
    leases.then[3] = leases.delete
    epoch = await candidate(leases).acquire(asyncio.Event())
    assert leases.looks == 1 + TIMES.duration_s
    assert epoch is not None
    assert epoch > before


async def test_where_there_is_no_lease_one_is_made() -> None:
    leases = OneLease()
    leases.delete()
    epoch = await candidate(leases).acquire(asyncio.Event())
    assert leases.looks == 1
    assert epoch is not None
    assert epoch.transitions == 1


async def test_who_finds_its_lease_deleted_ends() -> None:
    leases = OneLease()
    election = candidate(leases)
    await election.acquire(asyncio.Event())
    leases.delete()
    with pytest.raises(errors.LeaseLost, match="deleted"):
        await election.renew()


async def test_the_right_to_write_ends_before_another_may_acquire() -> None:
    leases = OneLease()
    election = candidate(leases)
    assert election.left_s() <= 0
    await election.acquire(asyncio.Event())
    assert election.left_s() == TIMES.renew_deadline_s
    leases.now += TIMES.renew_deadline_s
    assert election.left_s() <= 0
    assert not election.still_leading()


async def test_a_standby_is_amiss_only_if_it_cannot_see_the_lease() -> None:
    leases, stop = OneLease(holderIdentity="another"), asyncio.Event()
    election = candidate(leases)
    before = election.amiss()
    said: list[str] = []

    def goes_down() -> None:
        said.append(election.amiss())
        leases.is_down = True

    def goes_on_being_down() -> None:
        said.append(election.amiss())
        stop.set()

    leases.then = {5: goes_down, 25: goes_on_being_down}
    assert await election.acquire(stop) is None
    assert before == "waiting for the Lease, which cannot be read"
    assert said == ["", before]


@pytest.mark.parametrize(
    ("written", "left"),
    [({}, None), ({"holderIdentity": "another"}, "another")],
    ids=["by a renewal whose answer never came", "by another"],
)
async def test_a_lease_that_was_written_meanwhile_is_given_back_only_if_it_is_ours(
    written: dict[str, str], left: str | None
) -> None:
    leases = OneLease()
    election = candidate(leases)
    assert await election.acquire(asyncio.Event()) is not None
    leases.write({**leases.lease["spec"], **written})
    await election.release()
    assert leases.lease["spec"]["holderIdentity"] == left
    assert not election.still_leading()
