# SPDX-License-Identifier: Apache-2.0
"""Notices that a target container runs again, and grants it the same devices again, from the
runtime's word alone.

Its end is heard by the pidfd of its first process. The next container's cgroup appears in the
pod's before the runtime says that it runs: that rings, and then the runtime is asked in short
intervals for a while. A container that does not come again stays as it is, for the operator to
remove; so does one that cannot be granted, after each attempt, for the operator to say why.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from devicemount_agent import metrics
from devicemount_agent.bell import Bell
from devicemount_agent.container.cgroup import pod_cgroup
from devicemount_agent.container.find import Container, Runtime
from devicemount_agent.container.known import KnownContainers
from devicemount_agent.errors import (
    DeviceMountError,
    NodeUnavailable,
    ReservationLost,
)
from devicemount_agent.graft import graft
from devicemount_agent.grafts import Grafts, facts
from devicemount_agent.kernel import inotify
from devicemount_agent.ledger import Grant, Stage
from devicemount_agent.logs import line
from devicemount_agent.losses import IsReserved, Losses, reservation_lost
from devicemount_agent.model import ContainerID, PodUID
from devicemount_agent.requests import Target
from devicemount_agent.timeline import Timeline
from devicemount_agent.usability import Usability
from devicemount_agent.withdrawal import Withdrawal
from devicemount_agent_api.failpoints import Failpoint, fire

QUICK_S, QUICK_FOR_S = 0.01, 1.0  # from a new cgroup to a container that runs: 50 ms or so
SLOW_S, SLOW_FOR_S = 0.1, 10.0  # on a node under load
REREAD_S = 30.0  # should an event ever be missed
RETRY_S = 0.2  # after an attempt that failed, doubled each time
RETRY_LIMIT_S = 30.0

Confirm = Callable[[Grant], Awaitable[None]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A container that is waited for."""

    pod_uid: PodUID
    target: Target


class Restarts:
    """Of all target containers."""

    def __init__(
        self,
        *,
        grafts: Grafts,
        withdrawal: Withdrawal,
        losses: Losses,
        containers: KnownContainers,
        runtime: Runtime,
        usability: Usability,
        bell: Bell,
        is_reserved: IsReserved,
        confirm: Confirm,
    ) -> None:
        """`confirm` raises ReservationLost unless the devices are the shadow pod's still."""
        self._grafts = grafts
        self._withdrawal = withdrawal
        self._losses = losses
        self._containers = containers
        self._runtime = runtime
        self._usability = usability
        self._bell = bell
        self._is_reserved = is_reserved
        self._confirm = confirm
        self._tasks: dict[_Awaited, asyncio.Task[None]] = {}
        self._at_work: set[_Awaited] = set()
        self._said = ""  # of a runtime that does not answer

    def begin(self) -> None:
        """Wait for the containers that ended while no agent ran, or run anew since then."""
        for grant in self._grafts.ledger.grants.values():
            if self._is_to_come(grant):
                self._await(_Awaited(grant.key.pod_uid, grant.target), None)

    def expect(self, ended: Container) -> None:
        """Wait for the next run of a container that has just ended. Returns at once."""
        self._await(_Awaited(ended.pod_uid, ended.target), ended.cgroup.path.parent)

    async def finish(self) -> None:
        """End what waits, and wait for what has begun."""
        while self._tasks:
            for awaited, task in self._tasks.items():
                if awaited not in self._at_work:
                    task.cancel()
            await asyncio.wait(self._tasks.values(), timeout=SLOW_S)

    def _await(self, awaited: _Awaited, pod_directory: Path | None) -> None:
        if awaited in self._tasks or not self._grants(awaited):
            return
        self._tasks[awaited] = asyncio.create_task(self._follow(awaited, pod_directory))

    def _grants(self, awaited: _Awaited) -> tuple[Grant, ...]:
        """Return what the next run of the container is to be granted."""
        return tuple(
            grant
            for grant in self._grafts.ledger.grants.values()
            if (grant.key.pod_uid, grant.target) == (awaited.pod_uid, awaited.target)
            and self._is_to_come(grant)
        )

    def _is_to_come(self, grant: Grant) -> bool:
        """Tell whether it was granted to a container that runs no more; also begun anew in one."""
        was_granted = grant.stage is Stage.COMMITTED or (
            grant.stage is Stage.INTENT and grant.granted_unix_ns > 0
        )
        is_wanted = was_granted and grant.shadow.uid in self._grafts.live
        return is_wanted and self._containers.running(grant.container_id) is None

    # ---- waiting

    async def _follow(self, awaited: _Awaited, directory: Path | None) -> None:
        pod: _Pod | None = None
        try:
            directory = directory or await asyncio.to_thread(pod_cgroup, awaited.pod_uid)
            if directory is None:
                return
            pod = _Pod(directory, self._bell)
            await self._granted(awaited, pod)
        except FileNotFoundError:
            return  # nothing comes in a pod that is gone
        except (DeviceMountError, OSError):
            log.exception(line("could not follow", pod_uid=awaited.pod_uid))
        finally:  # nothing waits from the last look at the grants to here
            del self._tasks[awaited]
            if pod is not None:
                pod.close()

    async def _granted(self, awaited: _Awaited, pod: "_Pod") -> None:
        """Return when nothing is left to be granted. Raises FileNotFoundError: nor ever will be."""
        retry_s = RETRY_S
        while grants := self._grants(awaited):
            container_id = await self._running(awaited, {grant.container_id for grant in grants})
            if container_id is None:
                await pod.stirred(pod.pause_s())
                continue
            await self._grant_again(awaited, container_id)
            if self._grants(awaited):
                await pod.stirred(retry_s)
                retry_s = min(2 * retry_s, RETRY_LIMIT_S)

    async def _running(
        self, awaited: _Awaited, former: Collection[ContainerID]
    ) -> ContainerID | None:
        try:
            found = await self._runtime.running(awaited.pod_uid, awaited.target.container)
        except NodeUnavailable as error:
            if str(error) != self._said:  # of a runtime that is away, once is enough
                log.warning(line("could not see restart", pod_uid=awaited.pod_uid, error=error))
            self._said = str(error)
            return None
        self._said = ""
        return found if found not in former else None  # the runtime has yet to hear of its end

    # ---- granting

    async def _grant_again(self, awaited: _Awaited, container_id: ContainerID) -> None:
        self._at_work.add(awaited)
        try:
            async with self._grafts.lock(awaited.pod_uid):
                container = await self._containers.find(
                    awaited.target, pod_uid=awaited.pod_uid, hint=container_id
                )
                await asyncio.to_thread(graft.supported, container)
                for grant in self._grants(awaited):  # whatever they were before the lock
                    fire(Failpoint.AGENT_BEFORE_RESTART)
                    await self._grant_one_again(grant, container)
        except (DeviceMountError, OSError) as error:
            fields = {"pod_uid": awaited.pod_uid, "container": container_id[:12], "error": error}
            log.warning(line("not granted after restart", **fields))
        finally:
            self._at_work.discard(awaited)

    async def _grant_one_again(self, former: Grant, container: Container) -> None:
        """Grant as at first, since nothing of it is in a new container; after an error, not."""
        uid, timeline = former.shadow.uid, Timeline()
        begun = replace(
            former,
            container_id=container.id,
            stage=Stage.INTENT,
            earlier=(),
            made=frozenset(),
            bound=frozenset(),
            linked=frozenset(),
        )
        if not await self._is_reserved(
            former
        ):  # of a kubelet that has just begun, not proof of loss
            log.warning(line("not reserved after restart", **facts(former)))
            return
        try:
            begun = await self._grafts.intend(begun, container)
            brought = await self._grafts.bring_in(begun, container, timeline)
            await self._confirm(brought)
            self._grafts.history.restarts[uid] += 1
            metrics.restarts.add()
            self._grafts.commit(brought, timeline)
        except ReservationLost as error:
            self._losses.begin(uid, reservation_lost(str(error)))
        except (DeviceMountError, OSError) as error:
            log.warning(line("not granted after restart", **facts(begun), error=error))
            await self._withdrawal.undo(begun, former)
        else:
            count = self._grafts.history.restarts[uid]
            log.info(line("granted after restart", **facts(brought), restarts=count))
            await self._usability.look((brought,))


class _Pod:
    """The directory in which the cgroups of a pod's containers appear."""

    def __init__(self, directory: Path, bell: Bell) -> None:
        """Watch it. Raises FileNotFoundError."""
        self._directory = directory
        self._bell = bell
        self._rung = asyncio.Event()
        self._hung = bell.hang(directory, self._rung.set, mask=inotify.IN_CREATE)
        self._names = self._read()
        self._stirred_s = asyncio.get_running_loop().time() - QUICK_FOR_S

    def close(self) -> None:
        self._bell.take_down(self._hung)

    def pause_s(self) -> float:
        """Return how soon to ask the runtime again."""
        since_s = asyncio.get_running_loop().time() - self._stirred_s
        if since_s < QUICK_FOR_S:
            return QUICK_S
        return SLOW_S if since_s < SLOW_FOR_S else REREAD_S

    async def stirred(self, timeout_s: float) -> None:
        """Wait until another cgroup has appeared, or for so long. Raises FileNotFoundError."""
        until_s = asyncio.get_running_loop().time() + timeout_s
        while not self._read() - self._names:
            self._rung.clear()
            try:
                async with asyncio.timeout_at(until_s):
                    await self._rung.wait()
            except TimeoutError:
                self._names = self._read()
                return
        self._names = self._read()
        self._stirred_s = asyncio.get_running_loop().time()

    def _read(self) -> frozenset[str]:
        return frozenset(path.name for path in self._directory.iterdir())
