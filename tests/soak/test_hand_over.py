# SPDX-License-Identifier: Apache-2.0
"""How long nobody works when the operator that does is told to end, or killed, with the Lease's
times as they are shipped. It needs no testbed, only its API server and etcd (`make binaries`)."""

import logging
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import pytest

from component.operator.conftest import api_server, certificates, scene
from component.operator.processes import OperatorProcess, operator_process
from component.operator.scene import Scene
from devicemount_operator.settings import Settings

__all__ = ["api_server", "certificates", "scene"]

ROUNDS = 5
SHIPPED = {
    name: Settings.__dataclass_fields__[name].default
    for name in ("lease_duration_s", "lease_renew_deadline_s", "lease_retry_s", "lease_watch_s")
}
log = logging.getLogger(__name__)


@pytest.mark.parametrize(
    ("how", "within_s"), [(signal.SIGTERM, 3.0), (signal.SIGKILL, 20.0)], ids=["told", "killed"]
)
async def test_the_other_takes_over(
    scene: Scene, tmp_path: Path, how: signal.Signals, within_s: float
) -> None:
    await scene.running_pod()
    took: list[float] = []
    async with AsyncExitStack() as processes:

        async def start(identity: str) -> OperatorProcess:
            one = operator_process(scene, tmp_path, identity=identity, **SHIPPED)
            return await processes.enter_async_context(one)

        running = {name: await start(name) for name in ("a", "b")}
        for number in range(ROUNDS):
            await scene.eventually(scene.lease_holder)
            await scene.mount(f"before-{number}")
            await scene.becomes("Mounted", f"before-{number}")
            leader = await scene.lease_holder() or ""
            running.pop(leader).kill(how)
            killed = time.monotonic()
            await scene.mount(f"after-{number}")
            await scene.becomes("Mounted", f"after-{number}", within_s=within_s + 10)
            took.append(time.monotonic() - killed)
            running[f"{leader}{number}"] = await start(f"{leader}{number}")
    log.warning("%s: p50 %.1f s, most %.1f s (n = %d)", how.name, median(took), max(took), ROUNDS)
    assert max(took) < within_s
