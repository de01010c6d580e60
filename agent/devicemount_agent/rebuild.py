# SPDX-License-Identifier: Apache-2.0
"""Finds out what was granted where the journal is damaged or gone: from the kernel, the kubelet and
the runtime, never from a record that may be wrong.

Records that are whole say which grants there were, not what became of them. Whom no record names, a
living shadow pod has a grant where the kernel lets a container of its target use its devices, or
where a process has one that it could not open now: it was being taken back. What the kernel allows
beyond that is nobody's: on cgroup v2 it is ours by its program, and is revoked; on v1 ours and the
container's own stand in one list, so what neither the runtime nor a record explains is named, and
where the journal is damaged nothing is granted until that container has ended. Only when all is
explained a journal is written anew (docs/adr/0009).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from devicemount_agent.allocation.kubelet import Checkpoint
from devicemount_agent.allocation.read import Allocation, Choice, entries_of
from devicemount_agent.allocation.said import Ask
from devicemount_agent.container.cgroup import CGROUP_ROOT, CgroupVersion, every_container
from devicemount_agent.container.cri import ContainerFacts, Runtime, SandboxFacts
from devicemount_agent.container.find import Container, find
from devicemount_agent.errors import (
    ContainerMismatch,
    DeviceMountError,
    NodeUnavailable,
    TargetNotRunning,
    UnsupportedRuntime,
)
from devicemount_agent.graft import graft, subtree
from devicemount_agent.grafts import Grafts
from devicemount_agent.holders import search
from devicemount_agent.journal import Journal
from devicemount_agent.ledger import Earlier, Grant, Granted, Loss, Lost, Stage, access_of
from devicemount_agent.logs import line
from devicemount_agent.model import (
    Access,
    Bound,
    Concern,
    ContainerID,
    Device,
    DeviceNumber,
    MountUID,
    PodUID,
)
from devicemount_agent.questions import Questions, Unanswered
from devicemount_agent.requests import MountKey, ShadowPod, Target
from devicemount_agent.shadow import SHADOW_LABEL

MOUNT_ANNOTATION = "devicemount.io/mount"
TARGET_ANNOTATION = "devicemount.io/target-uid"

AGAIN_S = 5.0  # what keeps it ends with a container or a process
SEARCH_S = 20.0  # for one of the whole node: a tenant may make it wait without end
READ_S = 5.0  # for the sources of one allocation: some wait for the shadow pod's container
GONE = Loss(
    Concern("ReservationLost", "the shadow pod was gone when the damaged journal was rebuilt"),
    kill_boot_ns=0,
)
NAMED = 8  # reasons in one message
LOST = "there is no journal of this boot, but {} of a former agent's"

# What runc and crun allow by themselves: null, zero, full, random, urandom, ttys, ptmx, tun.
OF_RUNTIMES = frozenset(
    DeviceNumber("c", major, minor)
    for major, minors in {1: (3, 5, 7, 8, 9), 5: (0, 1, 2), 10: (200,)}.items()
    for minor in minors
)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Truth:
    """What has been found out so far."""

    shadows: Mapping[PodUID, SandboxFacts]  # the living ones
    running: dict[ContainerID, ContainerFacts] = field(default_factory=dict)
    found: dict[PodUID, Grant] = field(default_factory=dict)  # of which there is no record
    amiss: list[str] = field(default_factory=list)  # what cannot be explained


_Explain = Callable[[ContainerFacts, Container, _Truth], Awaitable[None]]


class Rebuild:
    """One pass over all running containers of the node. Idempotent."""

    def __init__(
        self,
        *,
        journal: Journal,
        grafts: Grafts,
        runtime: Runtime,
        checkpoint: Checkpoint,
        allocation: Allocation,
        hold: Path,
        cgroup_root: Path = CGROUP_ROOT,
    ) -> None:
        self._journal = journal
        self._grafts = grafts
        self._runtime = runtime
        self._checkpoint = checkpoint
        self._allocation = allocation
        self._hold = hold
        self._cgroup_root = cgroup_root
        self._is_doubted = False
        self._searches = Questions(wait_s=SEARCH_S)
        self._revoked: dict[ContainerID, frozenset[DeviceNumber]] = {}  # and held still, perhaps
        self.amiss = ""  # what keeps the journal from being written anew

    async def doubt(self) -> None:
        """Tell a first start from a journal that is gone: by what else there is of a former one.

        Asks for the sandboxes and, on cgroup v2, for programs of ours, of no container more. Raises
        NodeUnavailable.
        """
        if not self._journal.is_first or self._journal.damage:
            return
        found = "a shadow pod" if await self._living() else ""
        if not found and await asyncio.to_thread(_has_program):
            found = "a device program"
        if found:
            self._is_doubted = True
            self._journal.doubt(LOST.format(found))
            log.error(line("found no journal", damage=self._journal.damage))

    async def run(self) -> None:
        """Write the journal anew if all is explained, else say what is not in `amiss`.

        Raises NodeUnavailable.
        """
        shadows = await self._living()
        truth = _Truth(shadows)
        for container_id in await self._runtime.every_running():
            facts = await self._runtime.container(container_id)
            if facts is None or not facts.is_running:
                continue
            truth.running[facts.id] = facts
            if facts.pod_uid not in shadows:
                await self._explain(facts, truth, self._explain_open)
        await self._explain_held(truth)  # not before: a container may have handed devices on
        self._conclude(truth)

    async def _living(self) -> Mapping[PodUID, SandboxFacts]:
        sandboxes = await self._runtime.all_sandboxes()
        return {uid: pod for uid, pod in sandboxes.items() if SHADOW_LABEL in pod.labels}

    async def keep(self, recover: Callable[[], Awaitable[None]]) -> None:
        """Try again until all is explained; then let the grants be taken up."""
        is_due = bool(self._journal.damage)
        while is_due:
            await asyncio.sleep(AGAIN_S)
            try:
                if self._journal.damage:
                    await self.run()
                if not self._journal.damage:
                    await recover()
                    is_due = False
            except (DeviceMountError, OSError) as error:
                log.warning(line("not rebuilt", error=error))

    def _conclude(self, truth: _Truth) -> None:
        amiss = "; ".join(truth.amiss[:NAMED])
        if amiss and amiss != self.amiss:
            log.error(line("not rebuilt", damage=self._journal.damage, amiss=amiss))
        self.amiss = amiss
        if amiss:
            return
        damage, lost = self._journal.damage, self._grafts.ledger.grants.keys() - truth.shadows
        try:
            self._journal.renew(
                (*(Lost(uid, GONE) for uid in lost), *map(Granted, truth.found.values()))
            )
        except OSError as error:
            self.amiss = f"the journal cannot be written anew: {error}"
            log.error(line("not rebuilt", damage=damage, amiss=self.amiss))
            return
        log.warning(line("rebuilt", damage=damage, found=len(truth.found), lost=len(lost)))

    async def _explain(self, facts: ContainerFacts, truth: _Truth, explain: _Explain) -> None:
        """Explain what a container has, or had. Nobody grants or removes there meanwhile."""
        target = Target(facts.namespace, facts.pod_name, facts.name)
        async with self._grafts.lock(facts.pod_uid):
            try:
                container = await find(self._runtime, target, pod_uid=facts.pod_uid, hint=facts.id)
            except (TargetNotRunning, ContainerMismatch, UnsupportedRuntime):
                return  # ended, or of a kind in which nothing is ever granted
            try:
                await explain(facts, container, truth)
            except (DeviceMountError, OSError, TimeoutError) as error:
                truth.amiss.append(f"container {_named(facts)}: {error!r}")
            finally:
                container.close()

    async def _explain_open(
        self, facts: ContainerFacts, container: Container, truth: _Truth
    ) -> None:
        kept = [
            grant
            for grant in self._grafts.ledger.in_container(container.id)
            if grant.stage is not Stage.LOST and grant.shadow.uid in truth.shadows
        ]
        known = {
            number
            for grant in self._grafts.ledger.in_container(container.id)
            for number in grant.numbers()
        }
        is_v1 = container.cgroup.version is CgroupVersion.V1
        own = facts.permitted | OF_RUNTIMES if is_v1 else frozenset()  # else only ours is listed
        ours = await asyncio.to_thread(graft.allowed, container) - own
        ours |= self._revoked.get(container.id, frozenset())
        if not ours - known:
            return
        for grant in await self._unrecorded(container, truth, allowed=ours):
            truth.found[grant.shadow.uid] = grant
            kept.append(grant)
            known |= grant.numbers()
        spare = ours - known
        if spare and is_v1 and self._is_doubted:
            # Most likely a vendor's hook has given it: only shadow pods tell of grants here.
            log.warning(line("unexplained", container=_named(facts), numbers=_numbers(spare)))
        elif spare and is_v1:
            truth.amiss.append(
                f"no record and no spec of the runtime explains why container {_named(facts)}"
                f" may use {_numbers(spare)}; its end does"
            )
        elif spare:
            await self._revoke(facts, container, truth, spare=spare, kept=access_of(kept))

    async def _revoke(
        self,
        facts: ContainerFacts,
        container: Container,
        truth: _Truth,
        *,
        spare: frozenset[DeviceNumber],
        kept: Mapping[DeviceNumber, Access],
    ) -> None:
        """Take what only our own program allows, and nobody reserves; see that nobody has it."""
        self._revoked[container.id] = spare
        await asyncio.to_thread(graft.permit, container, kept, earlier={})
        log.warning(line("revoked unrecorded", container=_named(facts), numbers=_numbers(spare)))
        held = await asyncio.to_thread(self._still_held, facts, spare)
        truth.amiss += held
        if not held:
            del self._revoked[container.id]

    def _still_held(self, facts: ContainerFacts, spare: frozenset[DeviceNumber]) -> list[str]:
        grants = self._grafts.ledger.grants.values()
        question = search.Question(
            numbers=spare,
            target=facts.pod_uid,
            shadow=PodUID(""),
            granted=_granted(grant for grant in grants if grant.container_id != facts.id),
            hold=self._hold,
            cgroup_root=self._cgroup_root,
        )
        holders = (sighting.holder for sighting in search.search(question))
        return [
            f"process {holder.pid} of container {_named(facts)} has {_numbers(spare)} open, which"
            " nothing reserves; its end does"
            for holder in holders
            if holder.blocking
        ]

    async def _explain_held(self, truth: _Truth) -> None:
        """Find grants whose access was taken back already, by who has their devices still.

        Mostly nobody has any, and one search tells.
        """
        reserved = await self._reserved(truth)
        every = frozenset[DeviceNumber]().union(*map(_numbers_of, reserved.values()))
        if not every or not await self._having(every, truth):
            return
        for uid, devices in reserved.items():
            having = await self._having(_numbers_of(devices), truth)
            if not having:
                continue
            target = truth.shadows[uid].annotations.get(TARGET_ANNOTATION)
            of_target = [facts for facts in truth.running.values() if facts.pod_uid == target]
            for facts in sorted(of_target, key=lambda f: f.id not in having)[:1]:
                await self._explain(facts, truth, partial(self._take_up, uid=uid, devices=devices))
            if uid not in truth.found:
                truth.amiss.append(
                    f"somebody has a device of shadow pod {uid}, whose target does not run"
                )

    async def _reserved(self, truth: _Truth) -> Mapping[PodUID, tuple[Device, ...]]:
        """Return the devices that are reserved for a target, and are no known grant's."""
        recorded = self._recorded(truth)
        uids = [
            uid
            for uid, pod in truth.shadows.items()
            if uid not in recorded and pod.annotations.get(TARGET_ANNOTATION)
        ]
        told = await asyncio.gather(*(self._told(uid, truth) for uid in uids))
        return {uid: devices for uid, devices in zip(uids, told, strict=True) if devices}

    async def _told(self, uid: PodUID, truth: _Truth) -> tuple[Device, ...]:
        """Return a shadow pod's devices; none where an Apply would not be told them either."""
        try:
            return await self._devices(uid, truth.shadows[uid])
        except (NodeUnavailable, TimeoutError) as error:
            truth.amiss.append(f"shadow pod {uid}: {error!r}")
        except (DeviceMountError, OSError) as error:
            log.warning(line("unknown devices", shadow_uid=uid, error=repr(error)))
        return ()

    async def _having(
        self, numbers: frozenset[DeviceNumber], truth: _Truth
    ) -> frozenset[ContainerID | None]:
        """Return where processes have one of these devices and could not open it, nor by a grant.

        No target is named: what one hides may be anything, and is no sign of a grant.
        """
        question = search.Question(
            numbers=numbers,
            target=PodUID(""),
            shadow=PodUID(""),
            granted=_granted((*self._grafts.ledger.grants.values(), *truth.found.values())),
            hold=self._hold,
            cgroup_root=self._cgroup_root,
            rules=truth.running.get,
        )
        try:
            return await asyncio.to_thread(self._searches.ask, numbers, partial(_where, question))
        except (Unanswered, DeviceMountError, OSError) as error:
            truth.amiss.append(f"the search for who has {_numbers(numbers)}: {error}")
            return frozenset()

    async def _take_up(
        self,
        facts: ContainerFacts,
        container: Container,
        truth: _Truth,
        *,
        uid: PodUID,
        devices: tuple[Device, ...],
    ) -> None:
        """Note a revoked grant: what the container may do now, it could before.

        All of it is withheld: that is how it differs from an intent which recovery brings in.
        """
        grant = _grant(uid, truth.shadows[uid], container=container, devices=devices)
        others = (g for g in truth.found.values() if g.container_id == container.id)
        before = {
            **graft.earlier(container, grant.access()),
            **self._grafts.ledger.earlier_in(container.id),
            **{earlier.number: earlier.access for g in others for earlier in g.earlier},
        }
        noted = await self._as_made(grant, container, before)
        truth.found[uid] = replace(noted, withheld=frozenset(node.path for node in noted.nodes()))
        log.warning(line("held unrecorded", container=_named(facts), shadow_uid=uid))

    def _recorded(self, truth: _Truth) -> Collection[PodUID]:
        ledger = self._grafts.ledger
        return ledger.grants.keys() | ledger.spent.keys() | truth.found.keys()

    async def _unrecorded(
        self, container: Container, truth: _Truth, *, allowed: frozenset[DeviceNumber]
    ) -> list[Grant]:
        """Return grants of which no record is left: their reservations live, the kernel allows.

        On v1 the runtime allowed none of their numbers: so the container could not before us.
        """
        recorded = self._recorded(truth)
        candidates = [
            (uid, pod)
            for uid, pod in truth.shadows.items()
            if uid not in recorded and pod.annotations.get(TARGET_ANNOTATION) == container.pod_uid
        ]
        grants = [
            _grant(uid, pod, container=container, devices=await self._devices(uid, pod))
            for uid, pod in candidates
        ]
        is_v1 = container.cgroup.version is CgroupVersion.V1
        return [
            await self._as_made(
                grant, container, dict.fromkeys(grant.access(), Access.NONE) if is_v1 else {}
            )
            for grant in grants
            if grant.numbers() and grant.numbers() <= allowed
        ]

    async def _as_made(
        self, grant: Grant, container: Container, before: Mapping[DeviceNumber, Access]
    ) -> Grant:
        """Return the grant with what its intent would have said.

        What stands at its nodes' paths under their numbers is taken for ours, and so is the mount
        point of its files. Other mounts and links are not found again.
        """
        numbers = sorted(grant.access().keys() & before.keys())
        shown = await self._shown_in(container)
        return replace(
            grant,
            earlier=tuple(Earlier(number, before[number]) for number in numbers),
            made=frozenset((*(n.path for n in grant.nodes()), *(b.path for b in shown))),
            bound=shown,
        )

    async def _shown_in(self, container: Container) -> frozenset[Bound]:
        """Return the mount of the container's env and ready files, where it can be found.

        What a tenant puts in the way must not keep the journal damaged.
        """
        try:
            return await asyncio.to_thread(self._grafts.shown.found_in, container)
        except (DeviceMountError, OSError) as error:
            log.warning(line("found no files", container=container.id[:12], error=error))
            return frozenset()

    async def _devices(self, uid: PodUID, pod: SandboxFacts) -> tuple[Device, ...]:
        """Return what the kubelet gave a shadow pod, if anything."""
        entries = entries_of(self._checkpoint.read(), uid)
        if not entries:
            return ()
        async with asyncio.timeout(READ_S):
            ask = Ask(ShadowPod(uid, pod.name), pod.namespace, accept_env_file=True)
            return await self._allocation.read(Choice(entries), ask)


def _grant(
    uid: PodUID, pod: SandboxFacts, *, container: Container, devices: tuple[Device, ...]
) -> Grant:
    return Grant(
        key=MountKey(MountUID(pod.labels[SHADOW_LABEL]), container.pod_uid),
        mount_name=pod.annotations.get(MOUNT_ANNOTATION, ""),
        shadow=ShadowPod(uid, pod.name),
        target=container.target,
        container_id=container.id,
        devices=devices,
    )


def _granted(grants: Iterable[Grant]) -> frozenset[tuple[ContainerID, DeviceNumber]]:
    return frozenset((grant.container_id, number) for grant in grants for number in grant.access())


def _where(question: search.Question) -> frozenset[ContainerID | None]:
    return frozenset(one.container_id for one in search.find(question) if one.blocking)


def _numbers_of(devices: tuple[Device, ...]) -> frozenset[DeviceNumber]:
    return frozenset(n.number for device in devices for n in device.nodes if n.access)


def _has_program() -> bool:
    """Say whether a container of this node has a device program of ours (cgroup v2).

    Raises NodeUnavailable.
    """
    on_v2 = (one for one in every_container() if one.version is CgroupVersion.V2)
    try:
        return any(subtree.is_grafted(cgroup.path) for cgroup in on_v2)
    except OSError as error:
        raise NodeUnavailable(f"device programs cannot be looked at: {error}") from error


def _named(facts: ContainerFacts) -> str:
    return f"{facts.namespace}/{facts.pod_name}/{facts.name}"


def _numbers(numbers: frozenset[DeviceNumber]) -> str:
    return ", ".join(f"{n.kind} {n.major}:{n.minor}" for n in sorted(numbers)[:NAMED])
