# SPDX-License-Identifier: Apache-2.0
"""The arms: each makes one thing, notes its moments, removes it and waits until the device is free.

A sample is removed only when its pod runs: before that the kubelet is busy with the start that the
sample itself caused, and the next one would pay for it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.clock import Nanoseconds, ms_between, now
from bench.cluster import DEADLINE_S, Cluster, Place, is_gone, is_running
from bench.manifests import NAMESPACE, floor_pod, mount
from bench.probe import Change, first_open, first_refusal
from bench.samples import AFTER_DELETE, Arm, Moment, Sample
from bench.watches import Sighting, Sightings
from devicemount_testbed.api import DeadlineExceeded, Object, is_ready, mount_path, pod_path

PROBE_POLL_S = 0.005  # delays only the end of the sample: the prober itself takes the times

Objects = Sightings[Object | None]


class Unexpected(Exception):
    """A mount is Ready, but not as one device in one target is."""


@dataclass(slots=True)
class Stopwatch:
    """The moments of one sample."""

    posted: Nanoseconds = field(default_factory=now)
    deleted: Nanoseconds = field(default_factory=now)
    moments: dict[Moment, Nanoseconds] = field(default_factory=dict)

    def ms(self) -> Mapping[Moment, float]:
        """Return the moments in milliseconds after the POST, or after the DELETE."""
        return {
            moment: ms_between(self.deleted if moment in AFTER_DELETE else self.posted, at)
            for moment, at in self.moments.items()
        }


def floor(cluster: Cluster, place: Place, name: str) -> Sample:
    """Post a bare pod, until the kubelet has chosen its device."""
    path, body = pod_path(NAMESPACE, name), floor_pod(name, place.node)
    watch = Stopwatch()
    pod = cluster.api.call("POST", pod_path(NAMESPACE), body)
    watch.moments[Moment.POSTED] = now()
    with _removal(cluster, path, sightings=cluster.pods, watch=watch):
        watch.moments[Moment.T1] = _chosen(place, pod)
        watch.moments[Moment.RUNNING] = _first(cluster.pods, name, is_running).at
    watch.moments[Moment.FREE] = place.free(name)
    return Sample(arm=Arm.FLOOR, node=place.node, ms=watch.ms(), reported_ms={})


def admission(cluster: Cluster, place: Place, name: str) -> Sample:
    """Post a DeviceMount, until its device opens in the target and it is Ready."""
    path, body = mount_path(NAMESPACE, name), mount(name, place.target)
    watch = Stopwatch()
    posted = cluster.api.call("POST", mount_path(NAMESPACE), body)
    watch.moments[Moment.POSTED] = now()
    with _removal(cluster, path, sightings=cluster.mounts, watch=watch):
        ready = _first(cluster.mounts, name, is_ready)
        watch.moments[Moment.T2] = ready.at
        watch.moments[Moment.T1] = _probed(place, first_open, since=watch.posted)
        status = _status(ready)
        shadow = status["shadowPods"][0]
        runs = _first(cluster.pods, shadow, is_running)
        watch.moments[Moment.RUNNING] = runs.at
        watch.moments[Moment.CHOSEN] = _chosen(place, _object(runs))
        watch.moments[Moment.SHADOW_POD] = _first(cluster.pods, shadow, _is(runs)).at
        steps = cluster.agents.of(place.node, posted["metadata"]["uid"])
    watch.moments[Moment.REFUSED] = _probed(place, first_refusal, since=watch.deleted)
    _first(cluster.pods, shadow, is_gone)
    watch.moments[Moment.FREE] = place.free(shadow)
    reported = {f"agent {step}": ms for step, ms in steps.items()}
    reported.update({f"operator {name}": ms for name, ms in (status.get("timings") or {}).items()})
    return Sample(arm=Arm.ADMISSION, node=place.node, ms=watch.ms(), reported_ms=reported)


MEASURE: Mapping[Arm, Callable[[Cluster, Place, str], Sample]] = {
    Arm.FLOOR: floor,
    Arm.ADMISSION: admission,
}


@contextmanager
def _removal(
    cluster: Cluster, path: str, *, sightings: Objects, watch: Stopwatch
) -> Iterator[None]:
    """Delete the object in the end, also after a failure, and note when it is gone."""
    try:
        yield
    finally:
        watch.deleted = now()
        cluster.api.delete(path)
        watch.moments[Moment.GONE] = _first(sightings, path.rpartition("/")[2], is_gone).at


def _first(
    sightings: Objects, name: str, test: Callable[[Object | None], bool]
) -> Sighting[Object | None]:
    return sightings.first(name, test, what=test.__name__, deadline_s=DEADLINE_S)


def _is(sighting: Sighting[Object | None]) -> Callable[[Object | None], bool]:
    """Return a test for that very object: another one may have borne its name before."""
    uid = _object(sighting)["metadata"]["uid"]

    def is_the_same(seen: Object | None) -> bool:
        return seen is not None and seen["metadata"]["uid"] == uid

    return is_the_same


def _chosen(place: Place, pod: Object) -> Nanoseconds:
    """Return when the kubelet's checkpoint first named the pod."""
    uid = pod["metadata"]["uid"]
    return place.checkpoint.first(uid, lambda _: True, what="in it", deadline_s=DEADLINE_S).at


def _probed(
    place: Place,
    look: Callable[[Iterable[Change], Nanoseconds], Nanoseconds | None],
    *,
    since: Nanoseconds,
) -> Nanoseconds:
    """Return what the prober saw first since then; it writes within a millisecond or so."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if (at := look(place.changes(), since)) is not None:
            return at
        time.sleep(PROBE_POLL_S)
    raise DeadlineExceeded(f"{place.target}: no {look.__name__} within {DEADLINE_S:g} s")


def _object(sighting: Sighting[Object | None]) -> Object:
    assert sighting.seen is not None, f"{sighting.key} was asked for while it existed"
    return sighting.seen


def _status(ready: Sighting[Object | None]) -> Object:
    """Return what the DeviceMount says of its one target. Raises Unexpected."""
    targets: list[Object] = _object(ready)["status"]["targets"]
    if [len(target["shadowPods"]) for target in targets] != [1]:
        raise Unexpected(f"{ready.key}: Ready with targets {targets}")
    return targets[0]
