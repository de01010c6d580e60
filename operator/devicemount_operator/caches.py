# SPDX-License-Identifier: Apache-2.0
"""What the watches told us and what our own writes were answered, whichever is newer.

Only what can change a decision wakes a key: a status that we wrote ourselves, a heartbeat of the
kubelet or the echo of a write is taken in silently. What is older than what is known is not taken
in, and nothing from before its end brings back what a watch or a LIST has told as gone. Everything
is found by the DeviceMount's UID, since a name can be another object's by now. Nothing is trusted
before both LISTs are in.
"""

import logging
import sys
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from devicemount_operator import pods, shadow_pod
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.cluster import ObjectKey
from devicemount_operator.decide.observation import Place, PodUID
from devicemount_operator.decide.proof import RELEASE
from devicemount_operator.packing import Packed, version_of
from devicemount_operator.reflector import Listed
from devicemount_operator.transport import JsonObject

log = logging.getLogger(__name__)

REMEMBERED: Final = 4096  # of what is gone


@dataclass(frozen=True, slots=True)
class KnownMount:
    """A DeviceMount as the API server last showed it."""

    raw: JsonObject
    model: DeviceMount
    seen: float  # monotonic: when the operator first knew it

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.model.metadata.namespace, self.model.metadata.name)


class _Gone:
    """What is gone, and since which version; only the newest, since nothing comes very late."""

    def __init__(self) -> None:
        self._since: OrderedDict[str, int] = OrderedDict()

    def is_past(self, uid: str, version: int) -> bool:
        """Tell whether the object was so before it was gone."""
        return version <= self._since.get(uid, -1)

    def add(self, uid: str, *, version: int) -> None:
        self._since[uid] = max(version, self._since.get(uid, -1))
        if len(self._since) > REMEMBERED:
            self._since.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _KeptMount:
    """A DeviceMount, with what is asked of all of them at once."""

    packed: Packed
    seen: float
    namespace: str
    reason: str  # of Ready, else of Suspended; "": it says nothing yet


class Mounts:
    """All DeviceMounts, by UID."""

    def __init__(self) -> None:
        self._known: dict[str, _KeptMount] = {}
        self._gone = _Gone()

    def get(self, uid: str) -> KnownMount | None:
        """Return the object, parsed anew."""
        kept = self._known.get(uid)
        if kept is None:
            return None
        raw = kept.packed.raw
        return KnownMount(raw, DeviceMount.model_validate(raw), kept.seen)

    def uids(self) -> tuple[str, ...]:
        return tuple(self._known)

    def namespace_of(self, uid: str) -> str | None:
        kept = self._known.get(uid)
        return None if kept is None else kept.namespace

    def reasons(self) -> Mapping[str, int]:
        """Return how many say what, by the reason of Ready, else of Suspended; "": nothing yet."""
        return Counter(kept.reason for kept in self._known.values())

    def put(self, raw: JsonObject, *, now: float) -> bool:
        """Take the object in unless it is older than what we have.

        Tell whether a decision may change.
        """
        meta, version = raw["metadata"], version_of(raw)
        uid = meta["uid"]
        if meta.get("deletionTimestamp") and not meta.get("finalizers"):
            # That was its end. Who took the last finalizer off is answered with the former version.
            known = uid in self._known
            self.gone(uid, version=version)
            return known
        return self._is_newer(uid, version) and self._take(raw, Packed.of(raw), now=now)

    def drop(self, uid: str) -> bool:
        """Take the object out; tell whether it was there."""
        return self._known.pop(uid, None) is not None

    def gone(self, uid: str, *, version: int) -> None:
        """Take out an object that a watch or a LIST of that version has told as gone."""
        self._gone.add(uid, version=version)
        self.drop(uid)

    def replace_all(self, listed: Listed, *, now: float) -> tuple[str, ...]:
        """Take a whole LIST in; returns the UIDs whose decision may change, of those gone too."""
        there = {packed.uid for packed in listed.objects}
        changed = [
            packed.uid
            for packed in listed.objects
            if self._is_newer(packed.uid, packed.version)
            and self._take(packed.raw, packed, now=now)
        ]
        gone = [
            uid
            for uid, kept in self._known.items()
            if uid not in there and kept.packed.version <= int(listed.version)
        ]
        for uid in gone:
            self.gone(uid, version=int(listed.version))
        return (*changed, *gone)

    def _is_newer(self, uid: str, version: int) -> bool:
        before = self._known.get(uid)
        known = -1 if before is None else before.packed.version
        return version > known and not self._gone.is_past(uid, version)

    def _take(self, raw: JsonObject, packed: Packed, *, now: float) -> bool:
        before = self._known.get(packed.uid)
        try:
            model = DeviceMount.model_validate(raw)
        except ValidationError as error:  # written under a newer CRD: not ours to judge
            log.error("cannot read a DeviceMount uid=%s error=%s", packed.uid, str(error)[:500])
            return False
        seen = now if before is None else before.seen
        said, namespace = sys.intern(_reason(model)), sys.intern(model.metadata.namespace)
        self._known[packed.uid] = _KeptMount(packed, seen, namespace, said)
        if before is None:
            return True
        return _wanted(model) != _wanted(DeviceMount.model_validate(before.packed.raw))


def _reason(model: DeviceMount) -> str:
    said = {condition.type: condition.reason for condition in model.status.conditions}
    return said.get("Ready") or said.get("Suspended") or ""


def _wanted(model: DeviceMount) -> object:
    meta = model.metadata
    said = meta.annotations.get(RELEASE)
    return model.spec, meta.generation, meta.deletion_timestamp is not None, meta.finalizers, said


@dataclass(frozen=True, slots=True)
class KnownShadow:
    """A shadow pod as the API server last showed it, and since when it is as it is."""

    packed: Packed
    mount_uid: str  # that its label names
    key: ObjectKey
    place: Place
    seen: float  # monotonic
    hold_down_since: float | None  # monotonic; scheduled, and `hold` not running since then

    @property
    def uid(self) -> PodUID:
        return PodUID(self.packed.uid)

    @property
    def raw(self) -> JsonObject:
        """Return the pod, parsed anew."""
        return self.packed.raw


@dataclass(slots=True)
class Shadows:
    """All pods with the shadow label, by the DeviceMount's UID that it names."""

    _known: dict[str, dict[PodUID, KnownShadow]] = field(default_factory=dict)
    _deleted: set[PodUID] = field(default_factory=set)  # by us; the watch has not said so yet
    _gone: _Gone = field(default_factory=_Gone)

    def of(self, mount_uid: str) -> tuple[KnownShadow, ...]:
        return tuple(self._known.get(mount_uid, {}).values())

    def get(self, mount_uid: str, uid: PodUID) -> KnownShadow | None:
        return self._known.get(mount_uid, {}).get(uid)

    def mounts(self) -> tuple[str, ...]:
        """Return the UIDs of all DeviceMounts that shadow pods name."""
        return tuple(self._known)

    def put(self, raw: JsonObject, *, now: float) -> str | None:
        """Take the pod in; returns the DeviceMount's UID if its decision may change."""
        return self._put(Packed.of(raw), raw, now=now)

    def gone(self, raw: JsonObject) -> str | None:
        """Take the pod out; returns the DeviceMount's UID if we did not know that it went."""
        return self._is_gone(PodUID(raw["metadata"]["uid"]), _mount_of(raw), version_of(raw))

    def delete(self, shadow: KnownShadow) -> None:
        """Note that we deleted the pod: what the watch still says of it is the past."""
        self._deleted.add(shadow.uid)
        self._take(shadow.mount_uid, shadow.uid)

    def replace_all(self, listed: Listed, *, now: float) -> tuple[str, ...]:
        """Take a whole LIST in; returns the UIDs of the DeviceMounts whose decision may change."""
        there = {PodUID(packed.uid) for packed in listed.objects}
        newest = {pod.uid: pod for siblings in self._known.values() for pod in siblings.values()}
        changed = {
            self._is_gone(uid, pod.mount_uid, int(listed.version))
            for uid, pod in newest.items()
            if uid not in there and pod.packed.version <= int(listed.version)
        }
        self._deleted &= there
        for packed in listed.objects:
            known = newest.get(PodUID(packed.uid))
            if known is None or known.packed.version < packed.version:
                changed.add(self._put(packed, packed.raw, now=now))
        return tuple(uid for uid in changed if uid)

    def _put(self, packed: Packed, raw: JsonObject, *, now: float) -> str | None:
        uid, mount_uid = PodUID(packed.uid), _mount_of(raw)
        if uid in self._deleted or self._gone.is_past(uid, packed.version) or not mount_uid:
            return None
        siblings = self._known.setdefault(mount_uid, {})
        before = siblings.get(uid)
        if before is not None and packed.version <= before.packed.version:
            return None
        since = None if before is None else before.hold_down_since
        siblings[uid] = KnownShadow(
            packed,
            mount_uid=mount_uid,
            key=ObjectKey(sys.intern(raw["metadata"]["namespace"]), raw["metadata"]["name"]),
            place=Place(node=shadow_pod.node_of(raw), target_uid=shadow_pod.target_uid_of(raw)),
            seen=now if before is None else before.seen,
            hold_down_since=(now if since is None else since) if pods.is_hold_down(raw) else None,
        )
        unchanged = before is not None and _matters(before.raw) == _matters(raw)
        return None if unchanged else mount_uid

    def _is_gone(self, uid: PodUID, mount_uid: str, version: int) -> str | None:
        self._deleted.discard(uid)
        self._gone.add(uid, version=version)
        return mount_uid if self._take(mount_uid, uid) else None

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
