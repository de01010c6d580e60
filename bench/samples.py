# SPDX-License-Identifier: Apache-2.0
"""One measurement: which moments it saw, in milliseconds after what it did first."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Arm(Enum):
    """What is measured; every round holds each once on each node, in random order."""

    FLOOR = "floor"
    ADMISSION = "admission"


class Moment(Enum):
    """A moment of a sample; one clock for all of them."""

    POSTED = "posted"  # the API server answered the POST
    SHADOW_POD = "shadow_pod"  # seen by watch
    CHOSEN = "chosen"  # the kubelet's checkpoint names the shadow pod
    T1 = "t1"  # floor: the checkpoint names the pod; admission: first open in the target
    T2 = "t2"  # Ready, seen by watch
    RUNNING = "running"  # the pod that has the device, seen by watch
    REFUSED = "refused"  # from here on after the DELETE: first refused open in the target
    GONE = "gone"  # what was posted, seen by watch
    FREE = "free"  # the kubelet no longer lists the device as the pod's


AFTER_DELETE = (Moment.REFUSED, Moment.GONE, Moment.FREE)


@dataclass(frozen=True, slots=True)
class Sample:
    """A measurement that went through."""

    arm: Arm
    node: str
    ms: Mapping[Moment, float]
    reported_ms: Mapping[str, float]  # the agent's since Apply, the operator's since it saw it


@dataclass(frozen=True, slots=True)
class Failure:
    """A measurement that did not go through. It counts; it has no figures."""

    arm: Arm
    node: str
    what: str


@dataclass(frozen=True, slots=True)
class Run:
    """All measurements of one run."""

    rounds: int
    samples: tuple[Sample, ...]
    failures: tuple[Failure, ...]
    loads: tuple[float, ...]  # the load average over one minute, at the end of each round

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(sorted({s.node for s in self.samples} | {f.node for f in self.failures}))
