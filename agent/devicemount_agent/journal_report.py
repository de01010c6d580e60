# SPDX-License-Identifier: Apache-2.0
"""The journal for a person: `devicemount-agent journal`, while the agent runs or when it cannot.

Reads only. What stands in it are names of users: each line is kept to characters that print.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from devicemount_agent.journal import VERSION, Replay, replayed
from devicemount_agent.ledger import Grant, Ledger
from devicemount_agent.logs import plain

LINE_LIMIT = 400  # characters: a path of a driver's library stays below


def report(directory: Path, *, boot_id: str) -> Iterator[str]:
    """Yield the lines. Raises OSError."""
    directory.stat()
    for text in _lines(replayed(directory, boot_id=boot_id), directory, boot_id):
        yield plain(text, limit=LINE_LIMIT)


def _lines(said: Replay, directory: Path, boot_id: str) -> Iterator[str]:
    yield f"journal in {directory}: version {VERSION}, {said.length_bytes} bytes"
    yield f"boot {boot_id}: {said.records} records" + ("" if said.length_bytes else ", none of it")
    yield f"damage: {said.damage or 'none'}"
    yield from _epoch(said.ledger)
    yield f"grants: {len(said.ledger.grants)}"
    for grant in sorted(said.ledger.grants.values(), key=_by_target):
        yield from _grant(grant)


def _epoch(ledger: Ledger) -> Iterator[str]:
    if ledger.epoch is not None:
        created = _time(ledger.epoch.lease_created_ns)
        yield f"leader: lease of {created}, transition {ledger.epoch.transitions}"
    yield f"mounts whose last request is remembered: {len(ledger.seen)}"


def _by_target(grant: Grant) -> tuple[str, ...]:
    target = grant.target
    return target.namespace, target.pod_name, target.container, grant.shadow.name


def _grant(grant: Grant) -> Iterator[str]:
    target = grant.target
    yield ""
    yield f"{target.namespace}/{target.pod_name}/{target.container}: {grant.stage.value}"
    yield f"  since      {_time(grant.granted_unix_ns)}"
    yield f"  mount      {grant.mount_name} ({grant.key.mount_uid})"
    yield f"  pod        {grant.key.pod_uid}, container {grant.container_id}"
    yield f"  shadow pod {grant.shadow.name} ({grant.shadow.uid})"
    for device in grant.devices:
        yield f"  device     {device.resource}={device.id}"
        for node in device.nodes:
            number = node.number
            withheld = ", withheld" if node.path in grant.withheld else ""
            yield (
                f"    {node.path} {number.kind} {number.major}:{number.minor}"
                f" {node.access}{withheld}"
            )
    for earlier in grant.earlier:
        number, access = earlier.number, earlier.access or "nothing"
        yield f"  before us  {number.kind} {number.major}:{number.minor} {access}"
    for path in sorted(grant.made | {bound.path for bound in grant.bound}):
        yield f"  made       {path}"


def _time(unix_ns: int) -> str:
    if not unix_ns:
        return "not yet"
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_ns / 1e9))
