# SPDX-License-Identifier: Apache-2.0
"""kopf as a shell: it watches DeviceMounts and hands every event on. No state, no decision, no
write.

Only `on.event`, the one kind of handler that stores nothing on the object (docs/adr: kopf's
create/update/delete handlers cost 3-5 patches each and drop the finalizer on errors). kopf takes
off whatever finalizer bears its configured name, so that name is one that nobody uses.
"""

import asyncio
import dataclasses
import gc
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from devicemount_operator.api.v1alpha1 import GROUP, PLURAL, VERSION
from devicemount_operator.reflector import SILENCE_S
from devicemount_operator.transport import Access, JsonObject

UNUSED_FINALIZER = "devicemount.io/kopf-unused"
KOPF_IDLE_S = 0.1  # one task an object, which has nothing to wait for: ten thousand at the start
CREDENTIALS_FOR = timedelta(minutes=10)  # the kubelet renews a token long before it expires


class _NoEssence(kopf.DiffBaseStorage):
    """What kopf would compare for handlers of changes, of which there are none: it would copy every
    object twice for it."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        pass


async def watch(
    access: Callable[[], Access],
    *,
    changed: Callable[[JsonObject], None],
    deleted: Callable[[JsonObject], None],
    stop: asyncio.Event,
) -> None:
    """Run kopf until `stop` is set or the process is told to end. Raises what ends kopf.

    Its tasks and no others are ended here: `kopf.operator` would cancel every task of the loop.
    """
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # else a line for each event
    handlers = _registry(access, changed=changed, deleted=deleted)
    await _run(handlers, stop=stop)
    gc.collect()  # kopf leaves generators behind, which a loop that ends closes in the wrong order
    await asyncio.sleep(0)


async def _run(handlers: kopf.OperatorRegistry, *, stop: asyncio.Event) -> None:
    tasks = await kopf.spawn_tasks(
        registry=handlers,
        settings=_settings(),
        standalone=True,
        clusterwide=True,
        stop_flag=stop,
    )
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()


def _registry(
    access: Callable[[], Access],
    *,
    changed: Callable[[JsonObject], None],
    deleted: Callable[[JsonObject], None],
) -> kopf.OperatorRegistry:
    """Return kopf's handlers: how to log in, and where events go."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**_: Any) -> kopf.ConnectionInfo:
        expiration = datetime.now(UTC) + CREDENTIALS_FOR
        return kopf.ConnectionInfo(**dataclasses.asdict(access()), expiration=expiration)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def event(event: Any, **_: Any) -> None:
        (deleted if event["type"] == "DELETED" else changed)(event["object"])

    return handlers


def _settings() -> kopf.OperatorSettings:
    """Return kopf's settings: no writes of its own, watches that end and lists that are paged."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.persistence.finalizer = UNUSED_FINALIZER
    chosen.persistence.diffbase_storage = _NoEssence()
    chosen.queueing.idle_timeout = KOPF_IDLE_S
    chosen.watching.chunk_size = 500
    chosen.watching.server_timeout = 600
    chosen.watching.inactivity_timeout = SILENCE_S
    chosen.networking.request_timeout = 30
    chosen.networking.connect_timeout = 10
    chosen.networking.enforce_retry_after = True
    return chosen
