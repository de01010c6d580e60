# SPDX-License-Identifier: Apache-2.0
"""Kubernetes Events about objects, each fact once: a repetition counts up the Event that is there.

An Event is news and not state: one that cannot be written is logged and forgotten, and never fails
a pass.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from devicemount_operator import errors
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.transport import JsonObject

log = logging.getLogger(__name__)

REMEMBERED = 4096  # facts; the oldest are forgotten, and told as a new Event if they come again
REPEATS_FOR_S = 600.0  # later than this a repetition is a new Event
MESSAGE_CHARACTERS = 1024  # the API server's limit
NAME_CHARACTERS = 253  # so is this: of an Event's name, which begins with the object's
COMPONENT = "devicemount-operator"


@dataclass(frozen=True, slots=True)
class About:
    """The object that an Event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(slots=True)
class _Told:
    key: ObjectKey
    at: float
    count: int = field(default=1)


class Recorder:
    """Writes Events with this operator as their source."""

    def __init__(
        self, cluster: Cluster, *, identity: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._identity = identity
        self._clock = clock
        self._told: OrderedDict[tuple[str, str, str], _Told] = OrderedDict()

    async def record(self, about: About, *, kind: str, reason: str, message: str) -> None:
        """Tell a fact; `kind` is Normal or Warning."""
        message = message[:MESSAGE_CHARACTERS]
        fact = (about.uid, reason, message)
        told = self._told.get(fact)
        try:
            if told is not None and self._clock() - told.at < REPEATS_FOR_S:
                await self._repeat(told)
                return
            key = ObjectKey(about.namespace, _name_for(about))
            self._remember(fact, _Told(key, self._clock()))
            await self._cluster.create_event(about.namespace, self._body(about, key, kind, fact))
        except errors.Forbidden as error:
            self._told.pop(fact, None)
            ends = error.by is errors.ForbiddenBy.NAMESPACE  # and its Events with it
            level = logging.DEBUG if ends else logging.WARNING
            log.log(level, "could not write an Event reason=%s error=%s", reason, error)
        except errors.ApiError as error:
            self._told.pop(fact, None)
            log.warning("could not write an Event reason=%s error=%s", reason, error)

    async def _repeat(self, told: _Told) -> None:
        told.count += 1
        told.at = self._clock()
        await self._cluster.patch_event(told.key, {"count": told.count, "lastTimestamp": _now()})

    def _remember(self, fact: tuple[str, str, str], told: _Told) -> None:
        self._told[fact] = told
        self._told.move_to_end(fact)
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)

    def _body(
        self, about: About, key: ObjectKey, kind: str, fact: tuple[str, str, str]
    ) -> JsonObject:
        _, reason, message = fact
        now = _now()
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": key.namespace, "name": key.name},
            "involvedObject": {
                "apiVersion": about.api_version,
                "kind": about.kind,
                "namespace": about.namespace,
                "name": about.name,
                "uid": about.uid,
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._identity[:128],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def _name_for(about: About) -> str:
    """Return the name of a new Event; an object's name may be as long as an Event's."""
    mark = f".{time.time_ns():x}"
    return about.name[: NAME_CHARACTERS - len(mark)].rstrip("-.") + mark


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
