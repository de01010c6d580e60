# SPDX-License-Identifier: Apache-2.0
"""systemd takes a grant again and again: it is back at once, nothing else opens, nothing grows."""

import os
import sys
from statistics import quantiles

import pytest

from cluster.storm import (
    EVERY_S,
    FORBIDDEN,
    MANY,
    OPENED,
    REFUSED,
    TARGET,
    Container,
    outages_ms,
    rage,
)
from cluster.world import World, eventually
from devicemount_agent.graft.device_program import SYSTEMD_NAME

STORM_S = float(os.environ.get("DRIFT_S", "10"))
OUTAGE_MS = 1000.0


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_grant_outlasts_what_systemd_does(
    world: World, runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = outlast(world, runtime, seconds=STORM_S)
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")


def outlast(world: World, runtime: str, *, seconds: float) -> str:
    """Let a grant go through the storm; return the figures of its outages."""
    handler = {} if runtime == "runc" else {"runtimeClassName": runtime}
    pod = world.pod("notebook", node="node3", image=TARGET, **handler)
    container = Container.of(pod)
    before = own_programs(container)
    mount = world.mount("storm", pod, resource=MANY).ready()
    (granted,) = mount.files()
    with container.probing(granted) as answers:
        rage(container, seconds=EVERY_S)  # from then on systemd has a program of its own there
        eventually(lambda: answers()[granted][-1][1] == OPENED, what="it is open again")
        programs = len(container.programs())
        times = rage(container, seconds=seconds)
        eventually(lambda: answers()[granted][-1][1] == OPENED, what="it is open in the end")
        said = answers()
    outages = outages_ms(said[granted])
    assert {error for _, error in said[FORBIDDEN]} == {REFUSED}
    assert {error for _, error in said[granted]} <= {OPENED, REFUSED}
    assert max(outages, default=0.0) < OUTAGE_MS
    assert len(container.programs()) <= programs
    assert {len(keys) for keys in container.granted()} == {1}
    mount.ready().delete()
    assert own_programs(container) == before
    assert len(container.programs()) <= programs
    return report(runtime, times, outages)


def own_programs(container: Container) -> list[bytes]:
    """Return the container's programs but for systemd's, which orders its rules as it likes."""
    found = (one for one in container.programs() if one.name != SYSTEMD_NAME)
    return sorted(one.instructions for one in found)


def report(runtime: str, times: int, outages: list[float]) -> str:
    if len(outages) < 2:
        return f"{runtime}: {times} events, outages {outages}"
    cuts = quantiles(outages, n=100, method="inclusive")
    return (
        f"{runtime}: {times} events, {len(outages)} outages, p50 {cuts[49]:.0f} ms,"
        f" p99 {cuts[98]:.0f} ms, max {max(outages):.0f} ms"
    )
