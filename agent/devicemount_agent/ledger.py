# SPDX-License-Identifier: Apache-2.0
"""What the journal's records add up to: pure, so that replay can be reasoned about and tested apart
from files.

A grant is keyed by its shadow pod, since after a loss the old reservation is torn down while the
new one is set up. It is written before the kernel hears of it (intent), again when it is verified
(commit), and marked lost before a device that goes to somebody else is revoked, so that no restart
can grant it once more.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import PurePosixPath
from typing import Literal, assert_never

from devicemount_agent.model import (
    Access,
    Bound,
    Concern,
    ContainerID,
    Device,
    DeviceID,
    DeviceNode,
    DeviceNumber,
    Edits,
    Link,
    PodUID,
    ResourceName,
)
from devicemount_agent.requests import Epoch, MountKey, Order, ShadowPod, Target

SHADOW_NOT_RUNNING = "ShadowNotRunning"  # why a grant was lost: there was no fence for too long

TOMBSTONE_AGE_NS = 600 * 10**9  # no call lives longer than 30 s, so nothing older can still arrive
UNGUARDED_AGE_NS = 24 * 3600 * 10**9  # a mount that was not granted for so long is hardly there


class Stage(Enum):
    """How far a grant has come."""

    INTENT = "intent"  # the kernel may know of it, or not
    COMMITTED = "committed"  # verified inside the container
    LOST = "lost"  # the reservation is gone: to be revoked, never to be granted


@dataclass(frozen=True, slots=True)
class Earlier:
    """What the container could do with a device before we granted it (cgroup v1 only)."""

    number: DeviceNumber
    access: Access


@dataclass(frozen=True, slots=True)
class Loss:
    """How a reservation was lost, and when its device has to be free."""

    why: Concern
    kill_boot_ns: int  # CLOCK_BOOTTIME: until then holders may end by themselves


@dataclass(frozen=True, slots=True)
class Grant:
    """The devices of one shadow pod in one container."""

    key: MountKey
    mount_name: str
    shadow: ShadowPod
    target: Target
    container_id: ContainerID
    devices: tuple[Device, ...]
    earlier: tuple[Earlier, ...] = ()
    made: frozenset[str] = frozenset()  # paths in the container that are ours to remove
    bound: frozenset[Bound] = frozenset()  # mounts that are ours, maybe with other grants
    linked: frozenset[Link] = frozenset()  # by their own paths; those in `made` are ours
    hosted: frozenset[str] = frozenset()  # paths of nodes that the node had, under that number
    withheld: frozenset[str] = frozenset()  # of these, whose device is not there (any more)
    stage: Stage = Stage.INTENT
    granted_unix_ns: int = 0
    loss: Loss | None = None  # of one that is LOST

    def ids(self) -> dict[ResourceName, frozenset[DeviceID]]:
        """Return the devices as the kubelet names them."""
        resources = dict.fromkeys(device.resource for device in self.devices)
        return {
            resource: frozenset(d.id for d in self.devices if d.resource == resource)
            for resource in resources
        }

    def nodes(self) -> tuple[DeviceNode, ...]:
        """Return each node once: several ids may share them."""
        return tuple(dict.fromkeys(node for device in self.devices for node in device.nodes))

    def present(self) -> tuple[DeviceNode, ...]:
        """Return the nodes whose devices are there."""
        return tuple(node for node in self.nodes() if node.path not in self.withheld)

    def made_nodes(self) -> tuple[DeviceNode, ...]:
        """Return those of them that are made in the container, not mounted there."""
        mounted = {bound.path for bound in self.bound}
        return tuple(node for node in self.present() if node.path not in mounted)

    def present_bound(self) -> frozenset[Bound]:
        """Return the mounts but for those of devices that are not there."""
        return frozenset(bound for bound in self.bound if bound.path not in self.withheld)

    def numbers(self) -> set[DeviceNumber]:
        """Return what a process may hold by this grant: also a device whose file has gone."""
        return {node.number for node in self.nodes() if node.access}

    def edits(self) -> Edits:
        """Return what else enters the container, each once."""
        edits = tuple(device.edits for device in self.devices)
        return Edits(
            mounts=tuple(dict.fromkeys(mount for e in edits for mount in e.mounts)),
            links=tuple(dict.fromkeys(link for e in edits for link in e.links)),
            overlaid=tuple(dict.fromkeys(text for e in edits for text in e.overlaid)),
            env=tuple(dict.fromkeys(variable for e in edits for variable in e.env)),
        )

    def paths(self) -> frozenset[str]:
        """Return where it puts something, with the directories above."""
        placed = (node.path for node in self.nodes())
        bound = (bound.path for bound in self.bound)
        linked = (link.path for link in self.linked)
        paths = (PurePosixPath(path) for path in (*placed, *bound, *linked))
        return frozenset(str(part) for path in paths for part in (path, *path.parents))

    def access(self) -> dict[DeviceNumber, Access]:
        """Return what the container may do with each number by this grant."""
        return _joined((node.number, node.access) for node in self.present() if node.access)


@dataclass(frozen=True, slots=True)
class Seen:
    """The last request of a mount. Outlives the mount as its tombstone."""

    key: MountKey
    order: Order
    boot_ns: (
        int  # CLOCK_BOOTTIME: the journal does not outlive the boot, and nobody sets this clock
    )
    kind: Literal["seen"] = "seen"


@dataclass(frozen=True, slots=True)
class EpochSeen:
    """The highest epoch, kept when the last mount that showed it is forgotten."""

    epoch: Epoch
    kind: Literal["epoch"] = "epoch"


@dataclass(frozen=True, slots=True)
class Granted:
    """A grant as it is from now on: an intent, or any stage when the journal is compacted."""

    grant: Grant
    kind: Literal["grant"] = "grant"


@dataclass(frozen=True, slots=True)
class Committed:
    """The grant was verified inside the container."""

    shadow_uid: PodUID
    made: frozenset[str]
    granted_unix_ns: int
    bound: frozenset[Bound] = frozenset()  # the intent's, as they were found in the container
    kind: Literal["commit"] = "commit"


@dataclass(frozen=True, slots=True)
class Lost:
    """The grant's reservation is gone; what follows is its end."""

    shadow_uid: PodUID
    loss: Loss | None = None
    kind: Literal["lost"] = "lost"


@dataclass(frozen=True, slots=True)
class Removed:
    """Nothing of the grant is left in the container."""

    shadow_uid: PodUID
    kind: Literal["removed"] = "removed"


@dataclass(frozen=True, slots=True)
class Spent:
    """A shadow pod that lost its devices: nothing is granted by it ever again."""

    shadow_uid: PodUID
    boot_ns: int
    kind: Literal["spent"] = "spent"


@dataclass(frozen=True, slots=True)
class Unguarded:
    """The mount's last grant was lost since no fence stood: the next one waits for a fence."""

    key: MountKey
    boot_ns: int
    kind: Literal["unguarded"] = "unguarded"


@dataclass(frozen=True, slots=True)
class Guarded:
    """The fence of the mount's next grant stands."""

    key: MountKey
    kind: Literal["guarded"] = "guarded"


Record = Seen | EpochSeen | Granted | Committed | Lost | Removed | Spent | Unguarded | Guarded


@dataclass(frozen=True, slots=True)
class Ledger:
    """All grants and the last request of each mount."""

    grants: Mapping[PodUID, Grant] = field(default_factory=dict)
    seen: Mapping[MountKey, Seen] = field(default_factory=dict)
    epoch: Epoch | None = None
    spent: Mapping[PodUID, int] = field(default_factory=dict)  # since when, by CLOCK_BOOTTIME
    unguarded: Mapping[MountKey, int] = field(default_factory=dict)  # the same

    def of_mount(self, key: MountKey) -> tuple[Grant, ...]:
        return tuple(grant for grant in self.grants.values() if grant.key == key)

    def in_container(self, container_id: ContainerID) -> tuple[Grant, ...]:
        return tuple(g for g in self.grants.values() if g.container_id == container_id)

    def is_outdated(self, key: MountKey, order: Order) -> bool:
        """Tell whether a later leader, or a later request of this mount, was seen."""
        if self.epoch is not None and order.epoch < self.epoch:
            return True
        return key in self.seen and order < self.seen[key].order

    def earlier_in(self, container_id: ContainerID) -> dict[DeviceNumber, Access]:
        """Return what the container could do before us, for every number of our grants there."""
        return {
            earlier.number: earlier.access
            for grant in self.in_container(container_id)
            for earlier in grant.earlier
        }


def renumbered(grant: Grant, numbers: Mapping[str, DeviceNumber]) -> Grant:
    """Return the grant with other numbers at these paths, and nothing withheld."""

    def of(node: DeviceNode) -> DeviceNode:
        return replace(node, number=numbers.get(node.path, node.number))

    devices = (replace(device, nodes=tuple(map(of, device.nodes))) for device in grant.devices)
    return replace(grant, devices=tuple(devices), withheld=frozenset(), stage=Stage.INTENT)


def access_of(grants: Iterable[Grant]) -> dict[DeviceNumber, Access]:
    """Return what several grants allow together: the same number in two of them counts once."""
    return _joined(pair for grant in grants for pair in grant.access().items())


def after(ledger: Ledger, record: Record) -> Ledger:
    """Return the ledger with one more record. One about a grant that is not there is ignored."""
    if isinstance(record, Granted | Committed | Lost | Removed):
        return _after_step(ledger, record)
    return _after_note(ledger, record)


def _after_step(ledger: Ledger, record: Granted | Committed | Lost | Removed) -> Ledger:
    match record:
        case Granted():
            return _granted(ledger, record.grant)
        case Committed():
            return _committed(ledger, record)
        case Lost():
            return _lost(ledger, record)
        case Removed():
            return _without(ledger, record.shadow_uid)
        case _:
            assert_never(record)


def _after_note(ledger: Ledger, record: Seen | EpochSeen | Spent | Unguarded | Guarded) -> Ledger:
    match record:
        case Seen():
            epoch = max(ledger.epoch or record.order.epoch, record.order.epoch)
            return replace(ledger, seen={**ledger.seen, record.key: record}, epoch=epoch)
        case EpochSeen():
            return replace(ledger, epoch=max(ledger.epoch or record.epoch, record.epoch))
        case Spent():
            return replace(ledger, spent={**ledger.spent, record.shadow_uid: record.boot_ns})
        case Unguarded():
            unguarded = {**ledger.unguarded, record.key: record.boot_ns}
            return replace(ledger, unguarded=unguarded)
        case Guarded():
            others = {key: at for key, at in ledger.unguarded.items() if key != record.key}
            return replace(ledger, unguarded=others)
        case _:
            assert_never(record)


def compacted(ledger: Ledger, *, boot_ns: int) -> Ledger:
    """Forget the tombstones that nothing can still need."""
    mounted = {grant.key for grant in ledger.grants.values()}
    seen = {
        key: last
        for key, last in ledger.seen.items()
        if key in mounted
        or (last.order.epoch == ledger.epoch and boot_ns - last.boot_ns < TOMBSTONE_AGE_NS)
    }
    return replace(
        ledger,
        seen=seen,
        spent={
            uid: at
            for uid, at in ledger.spent.items()
            if uid in ledger.grants or boot_ns - at < TOMBSTONE_AGE_NS
        },
        unguarded={
            key: at for key, at in ledger.unguarded.items() if boot_ns - at < UNGUARDED_AGE_NS
        },
    )


def doubted(ledger: Ledger) -> Ledger:
    """Return what is left of a ledger whose journal was damaged: nothing in it is sure.

    A damaged record may have been any grant's end, so what is not lost is an intent again.
    """
    grants = {
        uid: grant if grant.stage is Stage.LOST else replace(grant, stage=Stage.INTENT)
        for uid, grant in ledger.grants.items()
    }
    return replace(ledger, grants=grants)


def records_of(ledger: Ledger) -> Iterator[Record]:
    """Yield the fewest records that add up to this ledger."""
    if ledger.epoch is not None:
        yield EpochSeen(ledger.epoch)
    yield from ledger.seen.values()
    yield from map(Granted, ledger.grants.values())
    for uid, at in ledger.spent.items():
        yield Spent(uid, at)
    for key, at in ledger.unguarded.items():
        yield Unguarded(key, at)


def _joined(pairs: Iterable[tuple[DeviceNumber, Access]]) -> dict[DeviceNumber, Access]:
    joined: dict[DeviceNumber, Access] = {}
    for number, access in pairs:
        joined[number] = joined.get(number, Access.NONE) | access
    return joined


def _with(ledger: Ledger, grant: Grant) -> Ledger:
    return replace(ledger, grants={**ledger.grants, grant.shadow.uid: grant})


def _granted(ledger: Ledger, grant: Grant) -> Ledger:
    """Write a grant as it is; what is lost stays so, whoever was at work with it meanwhile."""
    former = ledger.grants.get(grant.shadow.uid)
    if former is not None and former.stage is Stage.LOST and grant.stage is not Stage.LOST:
        return ledger
    return _with(ledger, grant)


def _committed(ledger: Ledger, record: Committed) -> Ledger:
    grant = ledger.grants.get(record.shadow_uid)
    if grant is None or grant.stage is Stage.LOST:
        return ledger
    return _with(
        ledger,
        replace(
            grant,
            stage=Stage.COMMITTED,
            made=grant.made | record.made,  # it may have inherited some meanwhile
            bound=record.bound or grant.bound,
            granted_unix_ns=record.granted_unix_ns,
        ),
    )


def _lost(ledger: Ledger, record: Lost) -> Ledger:
    """Mark a grant as lost; of a second record only the first one's reason counts."""
    grant = ledger.grants.get(record.shadow_uid)
    if grant is None or grant.stage is Stage.LOST:
        return ledger
    at = record.loss.kill_boot_ns if record.loss is not None else 0
    lost = replace(
        _with(ledger, replace(grant, stage=Stage.LOST, loss=record.loss)),
        spent={**ledger.spent, record.shadow_uid: at},
    )
    if record.loss is None or record.loss.why.reason != SHADOW_NOT_RUNNING:
        return lost
    return replace(lost, unguarded={**lost.unguarded, grant.key: at})


def _without(ledger: Ledger, shadow_uid: PodUID) -> Ledger:
    """Drop a grant; what it made and another grant of the container needs is now that one's."""
    gone = ledger.grants.get(shadow_uid)
    if gone is None:
        return ledger
    left = {uid: grant for uid, grant in ledger.grants.items() if uid != shadow_uid}
    for uid, heir in left.items():
        if heir.container_id == gone.container_id:
            left[uid] = replace(heir, made=heir.made | (gone.made & heir.paths()))
    return replace(ledger, grants=left)
