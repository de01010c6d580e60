# SPDX-License-Identifier: Apache-2.0
"""How the Lease is given back."""

import asyncio
from typing import Any

import pytest

from devicemount_operator import errors
from devicemount_operator.cluster import Leases, ObjectKey
from devicemount_operator.election import Election, LeaseTimes

TIMES = LeaseTimes(duration_s=15, renew_deadline_s=10, retry_s=2)


class OneLease(Leases):
    """The API server's copy."""

    def __init__(self) -> None:
        meta = {"uid": "lease", "creationTimestamp": "2026-11-26T07:00:00Z"}
        self.lease: dict[str, Any] = {"metadata": {**meta, "resourceVersion": "1"}, "spec": {}}

    async def get(self, key: ObjectKey) -> dict[str, Any]:
        return self.lease

    async def replace(self, key: ObjectKey, body: dict[str, Any]) -> dict[str, Any]:
        version = self.lease["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != version:
            raise errors.Conflict("changed", status=409)
        self.write(body["spec"])
        return self.lease

    def write(self, spec: dict[str, Any]) -> None:
        version = str(int(self.lease["metadata"]["resourceVersion"]) + 1)
        metadata = {**self.lease["metadata"], "resourceVersion": version}
        self.lease = {"metadata": metadata, "spec": spec}


@pytest.mark.parametrize(
    ("written", "left"),
    [({}, None), ({"holderIdentity": "another"}, "another")],
    ids=["by a renewal whose answer never came", "by another"],
)
async def test_a_lease_that_was_written_meanwhile_is_given_back_only_if_it_is_ours(
    written: dict[str, str], left: str | None
) -> None:
    leases = OneLease()
    election = Election(leases, namespace="system", identity="we", times=TIMES)
    assert await election.acquire(asyncio.Event()) is not None
    leases.write({**leases.lease["spec"], **written})
    await election.release()
    assert leases.lease["spec"]["holderIdentity"] == left
    assert not election.still_leading()
