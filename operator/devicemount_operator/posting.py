# SPDX-License-Identifier: Apache-2.0
"""Puts a shadow pod into a namespace that has rules of its own.

What a namespace demands is learnt from its refusal, so that one without rules costs nothing: sizes
from its LimitRanges (remembered for a while), another priority where the target's class is gone. A
refusal that none of this helps is said in the API server's words.
"""

import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from devicemount_operator import errors, shadow_pod, sizes
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.cluster import Cluster, ObjectKey
from devicemount_operator.decide.observation import PriorityClass, TargetPod
from devicemount_operator.errors import ForbiddenBy
from devicemount_operator.settings import Settings
from devicemount_operator.transport import JsonObject

log = logging.getLogger(__name__)

REMEMBERED_S: Final = 600.0  # then the defaults are tried again: a LimitRange may be gone
MAX_REMEMBERED: Final = 1000  # namespaces; one that is forgotten costs one refusal more
MAX_TRIES: Final = 4  # sizes, a class that is gone, a default

_COMPUTED: Final = re.compile(r"priority admission controller computed (-?[0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for by a shadow pod, whatever its name will be."""

    mount: DeviceMount
    target: TargetPod
    resources: Mapping[str, int]
    priority_class: PriorityClass | None  # that the mount names


@dataclass(frozen=True, slots=True)
class _Remembered:
    sizes: sizes.Sizes
    until: float  # monotonic


class Poster:
    """Knows what namespaces demanded lately."""

    def __init__(self, *, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._remembered: dict[str, _Remembered] = {}

    async def post(self, wanted: Wanted, ordinal: int) -> JsonObject | None:
        """Return the pod of that ordinal; None: the name is another's.

        One that exists and is ours is taken up. Raises ApiError, RequestTaken.
        """
        asked = wanted
        for _ in range(MAX_TRIES):
            body = self._body(asked, ordinal)
            try:
                return await self._create(asked, body)
            except errors.Forbidden as error:
                if error.by is ForbiddenBy.LIMITS:
                    await self._learn(wanted.mount.metadata.namespace)
                asked = _with_another_priority(wanted, asked, error)
                if self._body(asked, ordinal) == body:
                    raise _explained(wanted, error) from error
        raise errors.Conflict(f"the rules of {wanted.mount.metadata.namespace} change too fast")

    def _body(self, wanted: Wanted, ordinal: int) -> JsonObject:
        return shadow_pod.build(
            wanted.mount,
            target=wanted.target,
            ordinal=ordinal,
            resources=wanted.resources,
            image=self._settings.hold_image,
            pull_secret=self._settings.hold_pull_secret,
            priority_class=wanted.priority_class,
            has=self._sizes(wanted.mount.metadata.namespace),
        )

    async def _create(self, wanted: Wanted, body: JsonObject) -> JsonObject | None:
        mount = wanted.mount
        namespace, name = mount.metadata.namespace, body["metadata"]["name"]
        try:
            return await self._unchanged(wanted, await self._cluster.create_pod(namespace, body))
        except errors.AlreadyExists:
            log.info("a pod of this name exists already pod=%s/%s", namespace, name)
        try:
            existing = await self._cluster.get_pod(ObjectKey(namespace, name))
        except errors.NotFound:
            return None
        image = self._settings.hold_image
        ours = shadow_pod.is_adoptable(existing, mount=mount, image=image)
        is_its = shadow_pod.target_uid_of(existing) == wanted.target.uid  # its name has a part only
        is_live = "deletionTimestamp" not in existing["metadata"]
        return existing if ours and is_its and is_live else None

    async def _unchanged(self, wanted: Wanted, made: JsonObject) -> JsonObject:
        """Return the pod unless somebody took our request from it: it would hold nothing."""
        asked, has = wanted.resources, shadow_pod.requests_of(made)
        taken = [name for name, count in asked.items() if has.get(name, 0) < count]
        if not taken:
            return made
        meta = made["metadata"]
        with suppress(errors.NotFound, errors.Conflict):
            await self._cluster.delete_pod(
                ObjectKey(meta["namespace"], meta["name"]), uid=meta["uid"]
            )
        left = ", ".join(f"{has.get(name, 0)} of {asked[name]} {name}" for name in taken)
        raise errors.RequestTaken(f"admission left shadow pod {meta['name']} only {left}")

    # What a namespace demands

    async def _learn(self, namespace: str) -> None:
        fitting = sizes.fitting(await self._cluster.list_limit_ranges(namespace))
        log.info("shadow pods have other sizes namespace=%s sizes=%s", namespace, fitting)
        self._remembered.pop(namespace, None)  # the newest stand last
        self._remembered[namespace] = _Remembered(fitting, time.monotonic() + REMEMBERED_S)
        while len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def _sizes(self, namespace: str) -> sizes.Sizes:
        known = self._remembered.get(namespace)
        if known is None or known.until < time.monotonic():
            return sizes.DEFAULT
        return known.sizes


def _with_another_priority(wanted: Wanted, asked: Wanted, error: errors.Forbidden) -> Wanted:
    """Go without the target's class where it is gone, and with what the API server computes, unless
    that is above the target's own."""
    target = asked.target
    if wanted.priority_class is not None:
        return asked
    if error.by is ForbiddenBy.PRIORITY_GONE and target.priority_class is not None:
        target = replace(target, priority_class=None, priority=_own(wanted))
    elif error.by is ForbiddenBy.PRIORITY_DEFAULT and (found := _COMPUTED.search(str(error))):
        target = replace(target, priority=min(int(found[1]), _own(wanted)))
    return replace(asked, target=target)


def _own(wanted: Wanted) -> int:
    return wanted.target.priority or 0


def _explained(wanted: Wanted, error: errors.Forbidden) -> errors.Forbidden:
    """Say what a default priority above the target's means; other refusals speak for themselves."""
    if error.by is not ForbiddenBy.PRIORITY_DEFAULT or wanted.priority_class is not None:
        return error
    name, own = wanted.target.name, wanted.target.priority_class
    lead = f"PriorityClass {own} of pod {name} does not exist any more, and " if own else ""
    fact = (
        f"{lead}pods without a PriorityClass get a priority above {_own(wanted)}, which pod {name} "
        "has and no shadow pod of it exceeds: name a lower class in "
        "spec.reservation.priorityClassName"
    )
    return errors.Forbidden(f"{fact} ({error})", status=error.status, by=error.by)
