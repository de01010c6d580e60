# SPDX-License-Identifier: Apache-2.0
"""What the probes are answered with."""

import asyncio
from pathlib import Path

import pytest
from kubernetes.aio import client

from devicemount_operator import controller
from devicemount_operator.cluster import Leases
from devicemount_operator.controller import Controller
from devicemount_operator.election import Election, Epoch, LeaseTimes
from devicemount_operator.settings import Settings
from devicemount_operator.transport import Transport

SETTINGS = Settings(
    namespace="system", identity="we", hold_image="hold:1", tls_directory=Path("/nowhere")
)
TIMES = LeaseTimes(duration_s=15, renew_deadline_s=10, retry_s=2, watch_s=2)
EPOCH = Epoch(lease_created_ns=1, lease_uid="lease", transitions=1)


async def test_a_watch_that_has_died_unnoticed_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only what every mount depends on: no tenant's namespace, whose pods a selector means."""
    transport = Transport(client.Configuration())
    election = Election(Leases(transport), namespace="system", identity="we", times=TIMES)
    leading = Controller(
        transport=transport,
        settings=SETTINGS,
        election=election,
        epoch=EPOCH,
        stop=asyncio.Event(),
    )
    assert leading.stale() == ""
    monkeypatch.setattr(controller, "STALE_WATCH_S", -1.0)
    assert leading.stale() == "no sign of life from the watch of shadow pods, agents"
    await transport.close()
