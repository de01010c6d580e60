# SPDX-License-Identifier: Apache-2.0
"""The Lease: one operator acts, and each that comes to act has a higher epoch.

Agents refuse requests of a lower epoch, so a leader that was cut off cannot undo what its successor
did. Towards the API server nothing fences but time: `left_s` ends at a monotonic deadline that lies
before another may acquire the Lease. A leader that loses it ends its process: a
new one starts from what is, and never from what was.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from devicemount_operator import errors
from devicemount_operator.cluster import Leases, ObjectKey
from devicemount_operator.transport import JsonObject

log = logging.getLogger(__name__)

NAME = "devicemount-operator"


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """Ordered by the Lease's creation, then by how often it changed hands."""

    lease_created_ns: int
    lease_uid: str
    transitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """How long a Lease is valid, when its holder must stop, how often it is written and looked
    at."""

    duration_s: float
    renew_deadline_s: float
    retry_s: float
    watch_s: float


@dataclass(slots=True)
class _Rival:
    """Another's hold on the Lease: it lasts as long as the Lease changes, by our own clock.

    A Lease that somebody deletes ends nothing: its holder may not know of it yet.
    """

    version: str = ""
    until: float = 0.0  # monotonic

    def see(self, lease: JsonObject, *, valid_s: float, now: float) -> None:
        version = lease["metadata"]["resourceVersion"]
        if version != self.version:
            self.version, self.until = version, now + valid_s

    def is_gone(self) -> None:
        self.until = 0.0


class Election:
    """Acquires one Lease, renews it until it is lost, and can give it back."""

    def __init__(
        self,
        leases: Leases,
        *,
        namespace: str,
        identity: str,
        times: LeaseTimes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._key = ObjectKey(namespace, NAME)
        self._identity = identity
        self._times = times
        self._clock = clock
        self._deadline = 0.0
        self._looked = -math.inf  # monotonic: when the Lease, or that there is none, was last seen
        self._lease: JsonObject = {}

    def left_s(self) -> float:
        """Return for how long this process may still write; not above 0: not at all."""
        return self._deadline - self._clock()

    def still_leading(self) -> bool:
        """Tell whether this process may write now."""
        return self.left_s() > 0

    def amiss(self) -> str:
        """Say why this process could not take over; a standby that sees the Lease can."""
        silent_s = self._clock() - self._looked
        if silent_s <= self._times.duration_s:
            return ""
        return "waiting for the Lease, which cannot be read"

    async def acquire(self, stop: asyncio.Event) -> Epoch | None:
        """Wait until the Lease is ours, or until told to stop (None)."""
        rival = _Rival()
        while not stop.is_set():
            try:
                if (epoch := await self._try(rival)) is not None:
                    return epoch
            except (errors.Conflict, errors.AlreadyExists) as error:
                log.info("another took the Lease: %s", error)
            except errors.ApiError as error:
                log.warning("waiting for the Lease: %s", error)
            left_s = rival.until - self._clock()
            pause_s = min(self._times.watch_s, left_s) if left_s > 0 else self._times.watch_s
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await stop.wait()
        return None

    async def renew(self) -> None:
        """Keep the Lease; raises errors.LeaseLost when it cannot be kept."""
        while True:
            await asyncio.sleep(self._times.retry_s)
            await self._renew_once()

    async def release(self) -> None:
        """Give the Lease back, so that the next operator need not wait.

        Best effort: it expires by itself.
        """
        if not self.still_leading():
            return
        self._deadline = 0.0
        try:
            # Read anew: a renewal that was cut off may have been written.
            lease = await self._leases.get(self._key)
            if lease["spec"].get("holderIdentity") == self._identity:
                await self._leases.replace(self._key, self._body(lease, holder=None))
        except errors.ApiError as error:
            log.warning("could not release the Lease error=%s", error)

    async def _renew_once(self) -> None:
        sent_at = self._clock()
        try:
            body = self._body(self._lease, holder=self._identity)
            await self._written(self._leases.replace(self._key, body), sent_at=sent_at)
        except (errors.Conflict, errors.NotFound):
            await self._reread()
        except errors.ApiError as error:
            log.warning("could not renew the Lease error=%s", error)
        if not self.still_leading():
            raise errors.LeaseLost("the Lease could not be renewed in time")

    async def _reread(self) -> None:
        """Somebody wrote or deleted the Lease: annotations do not matter, another holder does."""
        try:
            lease = await self._leases.get(self._key)
        except errors.NotFound as error:
            raise errors.LeaseLost("the Lease was deleted") from error
        except errors.ApiError as error:
            log.warning("could not read the Lease error=%s", error)
            return
        if lease["spec"].get("holderIdentity") != self._identity:
            raise errors.LeaseLost(f"the Lease is held by {lease['spec'].get('holderIdentity')}")
        self._lease = lease

    async def _try(self, rival: _Rival) -> Epoch | None:
        """Take the Lease if nobody else may hold it. Raises ApiError."""
        lease = await self._find()
        self._looked = self._clock()
        if lease is not None:
            if lease["spec"].get("holderIdentity") in (None, "", self._identity):
                rival.is_gone()
            else:
                valid_s = lease["spec"].get("leaseDurationSeconds") or self._times.duration_s
                rival.see(lease, valid_s=valid_s, now=self._looked)
        if self._looked < rival.until:
            return None
        if lease is None:
            lease = await self._leases.create(self._key, {"leaseTransitions": 0})
        return await self._take(lease)

    async def _find(self) -> JsonObject | None:
        try:
            return await self._leases.get(self._key)
        except errors.NotFound:
            return None

    async def _take(self, lease: JsonObject) -> Epoch:
        """Write the Lease with us as holder and one more transition. Raises ApiError."""
        sent_at = self._clock()
        body = self._body(lease, holder=self._identity)
        body["spec"]["leaseTransitions"] = int(lease["spec"].get("leaseTransitions") or 0) + 1
        body["spec"]["acquireTime"] = body["spec"]["renewTime"]
        await self._written(self._leases.replace(self._key, body), sent_at=sent_at)
        epoch = epoch_of(self._lease)
        log.info("acquired the Lease transitions=%d", epoch.transitions)
        return epoch

    async def _written(self, answer: Awaitable[JsonObject], *, sent_at: float) -> None:
        self._lease = await answer
        self._deadline = sent_at + self._times.renew_deadline_s

    def _body(self, lease: JsonObject, *, holder: str | None) -> JsonObject:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {
            **lease["spec"],
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(self._times.duration_s)),
            "renewTime": now,
        }
        return {**lease, "spec": spec}


def epoch_of(lease: JsonObject) -> Epoch:
    """Read the epoch that a held Lease stands for."""
    created = datetime.fromisoformat(lease["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
    return Epoch(
        lease_created_ns=int(created.timestamp()) * 1_000_000_000,
        lease_uid=lease["metadata"]["uid"],
        transitions=int(lease["spec"].get("leaseTransitions") or 0),
    )
