# SPDX-License-Identifier: Apache-2.0
"""spec.lifetime: for how long a mount may have devices, and whether it goes with its target.

Pure. What is counted from stands in status.lifetime, so that neither a restart of the operator nor
one of the container begins the time anew; an edit of spec.lifetime does. No clock is trusted: what
is counted from lies between the object's creation and now, and `steady` is not moved by a step of
the wall clock while the operator runs.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from devicemount_operator.api.v1alpha1 import DeviceMount, LifetimeStatus

RETURN_S: Final = 30.0  # a StatefulSet has made its pod again by then
SKEW_S: Final = 60.0  # between the clocks of API server, operator and nodes


def is_expired(mount: DeviceMount, *, steady: float) -> bool:
    """Say whether the time is over; it stays so until spec.lifetime is edited."""
    left_s = left(mount, steady=steady)
    return left_s is not None and left_s <= 0


def left(mount: DeviceMount, *, steady: float, granted_wall: float | None = None) -> float | None:
    """Return for how many seconds the devices may stay; None: no end, or nothing is granted yet.

    `granted_wall`: when that happened of which status does not tell yet.
    """
    after_s = mount.spec.lifetime.expire_after_s
    if after_s is None:
        return None
    counted, since = _counted(mount, steady=steady), granted_wall
    if counted is not None and counted.since is not None:
        since = counted.since.timestamp()
    return None if since is None else min(after_s, since + after_s - steady)


def gone_s(mount: DeviceMount, *, steady: float) -> float | None:
    """Return for how long the target that had the devices has been gone; None: it is not."""
    counted = _counted(mount, steady=steady)
    if counted is None or counted.target_gone is None:
        return None
    if counted.target is None or counted.target != mount.spec.target.pod_name:
        return None  # another pod is meant by now, and may be yet to come
    return steady - counted.target_gone.timestamp()


def to_status(
    mount: DeviceMount,
    *,
    granted: Iterable[tuple[str | None, datetime]],
    is_target_gone: bool | None,
    steady: float,
) -> LifetimeStatus | None:
    """Return status.lifetime as it is now; None where spec has none.

    `granted`: in which pods something is mounted, and since when; `is_target_gone` None: nobody has
    looked.
    """
    wanted, meant = mount.spec.lifetime, mount.spec.target.pod_name
    if wanted.expire_after is None and not wanted.delete_with_target:
        return None
    now = datetime.fromtimestamp(int(steady), UTC)
    counted = _counted(mount, steady=steady)
    mounted = tuple(granted)
    since = _first(mount, (when for _, when in mounted), now=now)
    if counted is not None and counted.since is not None:
        since = counted.since
    elif since is not None and _was_edited(mount, counted):
        since = now
    if mount.spec.suspend and not is_expired(mount, steady=steady):
        since = None  # what is mounted after that is mounted anew
    had = counted.target if counted is not None else None
    if wanted.delete_with_target and any(name == meant for name, _ in mounted):
        had = meant
    is_that_one = had is not None and had == meant and since is not None
    gone = counted.target_gone if counted is not None and is_that_one else None
    if is_target_gone is not None:
        gone = (gone or now) if is_target_gone and is_that_one else None
    after_s = wanted.expire_after_s
    return LifetimeStatus(
        expire_after=wanted.expire_after,
        delete_with_target=wanted.delete_with_target,
        since=since,
        expires=since + timedelta(seconds=after_s) if since and after_s is not None else None,
        target=had,
        target_gone=gone,
    )


def _counted(mount: DeviceMount, *, steady: float) -> LifetimeStatus | None:
    """Return what status counts, if it counts what spec says now, and of this very object: what a
    backup brought back tells of another one, and a time to come of a clock that was wrong."""
    wanted, counted = mount.spec.lifetime, mount.status.lifetime
    if counted is None:
        return None
    if (counted.expire_after, counted.delete_with_target) != (
        wanted.expire_after,
        wanted.delete_with_target,
    ):
        return None
    created = mount.metadata.creation_timestamp
    earliest = 0.0 if created is None else created.timestamp() - SKEW_S
    times = (time.timestamp() for time in (counted.since, counted.target_gone) if time is not None)
    return counted if all(earliest <= time <= steady + SKEW_S for time in times) else None


def _was_edited(mount: DeviceMount, counted: LifetimeStatus | None) -> bool:
    """Say whether something was mounted already when spec.lifetime became what it is."""
    return counted is None and any(row.since is not None for row in mount.status.targets)


def _first(mount: DeviceMount, granted: Iterable[datetime], *, now: datetime) -> datetime | None:
    """Return when the first of what is mounted was granted, by a clock that others set."""
    first = min(granted, default=None)
    if first is None:
        return None
    created = mount.metadata.creation_timestamp
    return min(now, first if created is None else max(first, created))
