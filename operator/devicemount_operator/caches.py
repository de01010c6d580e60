# SPDX-License-Identifier: Apache-2.0
"""What the watches told us and what our own writes were answered, whichever is newer.

Only what can change a decision wakes a key: a status that we wrote ourselves, a heartbeat of the
kubelet or the echo of a write is taken in silently. Everything is found by the DeviceMount's UID,
since a name can be another object's by now. Nothing is trusted before both LISTs are in.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from devicemount_operator import pods, shadow_pod
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.cluster import ObjectKey
from devicemount_operator.decide.observation import Place, PodUID
from devicemount_operator.reflector import Listed
from devicemount_operator.transport import JsonObject

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownMount:
    """A DeviceMount as the API server last showed it."""

    raw: JsonObject
    model: DeviceMount
    seen: float  # monotonic: when the operator first knew it

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.model.metadata.namespace, self.model.metadata.name)


class Mounts:
    """All DeviceMounts, by UID."""

    def __init__(self) -> None:
        self._known: dict[str, KnownMount] = {}

    def get(self, uid: str) -> KnownMount | None:
        return self._known.get(uid)

    def uids(self) -> tuple[str, ...]:
        return tuple(self._known)

    def put(self, raw: JsonObject, *, now: float) -> bool:
        """Take the object in unless it is older than what we have.

        Tell whether a decision may change.
        """
        uid = raw["metadata"]["uid"]
        before = self._known.get(uid)
        if before is not None and _version(raw) <= _version(before.raw):
            return False
        if raw["metadata"].get("deletionTimestamp") and not raw["metadata"].get("finalizers"):
            return self.drop(uid)  # what we took the last finalizer off, or the last sight of it
        raw = {**raw, "metadata": {**raw["metadata"], "managedFields": None}}
        try:
            model = DeviceMount.model_validate(raw)
        except ValidationError as error:  # written under a newer CRD: not ours to judge
            log.error("cannot read a DeviceMount uid=%s error=%s", uid, str(error)[:500])
            return False
        self._known[uid] = KnownMount(raw, model, now if before is None else before.seen)
        return before is None or _wanted(model) != _wanted(before.model)

    def drop(self, uid: str) -> bool:
        """Take the object out; tell whether it was there."""
        return self._known.pop(uid, None) is not None

    def replace_all(self, listed: Listed, *, now: float) -> tuple[str, ...]:
        """Take a whole LIST in; returns the UIDs whose decision may change, of those gone too."""
        raws = {raw["metadata"]["uid"]: raw for raw in listed.objects}
        changed = [uid for uid, raw in raws.items() if self.put(raw, now=now)]
        gone = [
            uid
            for uid, known in self._known.items()
            if uid not in raws and _version(known.raw) <= int(listed.version)
        ]
        for uid in gone:
            self.drop(uid)
        return (*changed, *gone)


def _wanted(model: DeviceMount) -> object:
    meta = model.metadata
    return model.spec, meta.generation, meta.deletion_timestamp is not None, meta.finalizers


def _version(raw: JsonObject) -> int:
    """Return an order among versions of one object.

    ResourceVersions count up (Kubernetes says so since 1.35).
    """
    version = str(raw["metadata"]["resourceVersion"])
    return int(version) if version.isdecimal() else 0


@dataclass(slots=True)
class KnownShadow:
    """A shadow pod as the API server last showed it, and since when it is as it is."""

    raw: JsonObject
    seen: float  # monotonic
    hold_down_since: float | None  # monotonic; scheduled, and `hold` not running since then

    @property
    def uid(self) -> PodUID:
        return PodUID(self.raw["metadata"]["uid"])

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.raw["metadata"]["namespace"], self.raw["metadata"]["name"])

    @property
    def place(self) -> Place:
        return Place(
            node=shadow_pod.node_of(self.raw), target_uid=shadow_pod.target_uid_of(self.raw)
        )


@dataclass(slots=True)
class Shadows:
    """All pods with the shadow label, by the DeviceMount's UID that it names."""

    _known: dict[str, dict[PodUID, KnownShadow]] = field(default_factory=dict)
    _deleted: set[PodUID] = field(default_factory=set)  # by us; the watch has not said so yet

    def of(self, mount_uid: str) -> tuple[KnownShadow, ...]:
        return tuple(self._known.get(mount_uid, {}).values())

    def get(self, mount_uid: str, uid: PodUID) -> KnownShadow | None:
        return self._known.get(mount_uid, {}).get(uid)

    def mounts(self) -> tuple[str, ...]:
        """Return the UIDs of all DeviceMounts that shadow pods name."""
        return tuple(self._known)

    def put(self, raw: JsonObject, *, now: float) -> str | None:
        """Take the pod in; returns the DeviceMount's UID if its decision may change."""
        uid, mount_uid = PodUID(raw["metadata"]["uid"]), _mount_of(raw)
        if uid in self._deleted or not mount_uid:
            return None
        siblings = self._known.setdefault(mount_uid, {})
        before = siblings.get(uid)
        if before is not None and _version(raw) <= _version(before.raw):
            return None
        since = None if before is None else before.hold_down_since
        siblings[uid] = KnownShadow(
            raw,
            seen=now if before is None else before.seen,
            hold_down_since=(now if since is None else since) if pods.is_hold_down(raw) else None,
        )
        unchanged = before is not None and _matters(before.raw) == _matters(raw)
        return None if unchanged else mount_uid

    def gone(self, raw: JsonObject) -> str | None:
        """Take the pod out; returns the DeviceMount's UID if we did not know that it went."""
        uid, mount_uid = PodUID(raw["metadata"]["uid"]), _mount_of(raw)
        self._deleted.discard(uid)
        return mount_uid if self._take(mount_uid, uid) else None

    def delete(self, shadow: KnownShadow) -> None:
        """Note that we deleted the pod: what the watch still says of it is the past."""
        self._deleted.add(shadow.uid)
        self._take(_mount_of(shadow.raw), shadow.uid)

    def replace_all(self, listed: Listed, *, now: float) -> tuple[str, ...]:
        """Take a whole LIST in; returns the UIDs of the DeviceMounts whose decision may change."""
        raws = {PodUID(raw["metadata"]["uid"]): raw for raw in listed.objects}
        known = [pod for siblings in self._known.values() for pod in siblings.values()]
        changed = {
            self.gone(pod.raw)
            for pod in known
            if pod.uid not in raws and _version(pod.raw) <= int(listed.version)
        }
        self._deleted &= raws.keys()
        changed |= {self.put(raw, now=now) for raw in raws.values()}
        return tuple(uid for uid in changed if uid)

    def _take(self, mount_uid: str, uid: PodUID) -> bool:
        siblings = self._known.get(mount_uid, {})
        was_there = siblings.pop(uid, None) is not None
        if was_there and not siblings:
            del self._known[mount_uid]
        return was_there


def _mount_of(raw: JsonObject) -> str:
    return str((raw["metadata"].get("labels") or {}).get(shadow_pod.LABEL, ""))


def _matters(raw: JsonObject) -> tuple[Any, ...]:
    """Return all of a shadow pod that decisions read and that can change."""
    meta, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    statuses = status.get("containerStatuses") or ()
    hold = [s.get("state") for s in statuses if s["name"] == shadow_pod.CONTAINER]
    scheduled = [c for c in status.get("conditions") or () if c["type"] == "PodScheduled"]
    return (
        [meta.get(name) for name in ("deletionTimestamp", "labels", "annotations")],
        meta.get("ownerReferences"),
        [spec.get(name) for name in ("nodeName", "schedulingGates")],
        [container["image"] for container in spec["containers"]],
        [status.get(n) for n in ("phase", "reason", "message", "extendedResourceClaimStatus")],
        [(c["status"], c.get("message")) for c in scheduled],
        hold,
    )
