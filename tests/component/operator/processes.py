# SPDX-License-Identifier: Apache-2.0
"""The operator as a process of its own, which can be killed; forked from one that has imported it
already."""

import asyncio
import dataclasses
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from component.operator.forked import operate
from component.operator.scene import Scene
from devicemount_agent_api.failpoints import Failpoint

END_S = 20.0

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["devicemount_operator.__main__"])


@dataclass
class OperatorProcess:
    """One that was started."""

    process: BaseProcess
    log: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    async def end(self, *, within_s: float = END_S) -> int:
        """Return how it ended: an exit status, or the negative number of a signal."""
        await asyncio.to_thread(self.process.join, within_s)
        assert self.process.exitcode is not None, f"it runs on after {within_s} s"
        return self.process.exitcode


@asynccontextmanager
async def operator_process(
    scene: Scene, directory: Path, *, failpoint: Failpoint | None = None, **changed: Any
) -> AsyncIterator[OperatorProcess]:
    """Run one until the block ends, with its log and its failpoint's mark in the directory."""
    settings = dataclasses.replace(scene.settings, **changed)
    environment = {**os.environ, "DM_FAILPOINT_DIR": str(directory)}
    if failpoint is not None:
        environment["DM_FAILPOINT"] = failpoint.value
    log = directory / f"{settings.identity}.log"
    log.touch()  # one that ends at once writes none
    process = _forks.Process(target=operate, args=(settings, environment, log))
    await asyncio.to_thread(process.start)
    started = OperatorProcess(process, log)
    try:
        yield started
    finally:
        if process.is_alive():
            started.kill(signal.SIGTERM)
        await started.end()
        process.close()
    assert "Traceback" not in log.read_text()
