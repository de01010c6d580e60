# SPDX-License-Identifier: Apache-2.0
"""The agent's memory: one file in a tmpfs, that outlives the agent and, like the grants themselves,
not the boot.

One record a line, `<crc32> <json>`, appended by one write and never synced: the page cache survives
our death. A tail without its newline is a write that never happened. A record that is damaged
anywhere else may have been a removal, so from then on nothing is granted, neither anew nor at the
start, until a person has acted (docs/security.md) or the node was booted; what is still known can
be removed. A full disk refuses new records and changes nothing.
"""

import fcntl
import json
import os
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.ledger import Granted, Ledger, Record, after, compacted, records_of

VERSION = 1
SLACK_RECORDS = 1024  # so many records more than needed, then the file is written anew
SLACK_BYTES = 1 << 20  # or so many bytes: a grant with a driver's libraries has some 10 KiB

_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Replay:
    """What a journal's bytes say."""

    ledger: Ledger
    records: int  # lines that were understood, without the header
    length_bytes: int  # up to the end of the last whole line
    damage: str  # "" or what is wrong with it


def replay(raw: bytes, *, boot_id: str) -> Replay:
    """Add up a journal. Pure: the same bytes say the same. Another boot's journal says nothing."""
    whole, newline, _torn = raw.rpartition(b"\n")
    length = len(whole) + len(newline)
    lines = whole.split(b"\n") if whole else []
    if not lines:
        return Replay(Ledger(), 0, 0, "")
    try:
        header = json.loads(_unsealed(lines[0]))
        if header["version"] != VERSION:
            return Replay(Ledger(), 0, length, f"version {header['version']} is not known")
        if header["boot_id"] != boot_id:
            return Replay(Ledger(), 0, 0, "")
    except (ValueError, KeyError, TypeError) as error:
        return Replay(Ledger(), 0, length, f"header: {error}")
    ledger, understood, damage = Ledger(), 0, ""
    for number, line in enumerate(lines[1:], start=2):
        try:
            ledger = after(ledger, _RECORD.validate_json(_unsealed(line)))
            understood += 1
        except (ValueError, ValidationError) as error:
            damage = damage or f"line {number}: {error}"
    return Replay(ledger, understood, length, damage)


class Journal:
    """The file and what it adds up to. One process at a time may have it open."""

    def __init__(self, directory: Path, *, boot_id: str) -> None:
        """Open or create it. Raises OSError, BlockingIOError when another agent has it."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / "journal"
        self._boot_id = boot_id
        self._lock_fd = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raw = self._path.read_bytes() if self._path.exists() else b""
        said = replay(raw, boot_id=boot_id)
        self.ledger = said.ledger
        self.damage = said.damage
        self._records = said.records
        self._length = self._compact_length = said.length_bytes
        self._fd = -1
        if said.damage:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        else:
            self._rewrite()

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._lock_fd)

    def append(self, record: Record) -> None:
        """Write one record, then believe it. Raises NodeUnavailable, having changed nothing."""
        if isinstance(record, Granted) and self.damage:
            raise NodeUnavailable(f"the journal is damaged, nothing is granted: {self.damage}")
        self._write(_sealed(_RECORD.dump_json(record)))
        self.ledger = after(self.ledger, record)
        self._records += 1
        if not self.damage and self._is_due():
            self._rewrite()

    def _write(self, line: bytes) -> None:
        try:
            written = os.pwrite(self._fd, line, self._length)
            if written < len(line):
                raise OSError(f"{written} of {len(line)} bytes fitted")
        except OSError as error:
            with suppress(OSError):  # what stands behind the end has no newline: replay ignores it
                os.ftruncate(self._fd, self._length)
            raise NodeUnavailable(f"the journal {self._path} cannot be written: {error}") from error
        self._length += written

    def _is_due(self) -> bool:
        needed = len(self.ledger.grants) + len(self.ledger.seen)
        is_long = self._length > 2 * self._compact_length + SLACK_BYTES
        return is_long or self._records > 2 * needed + SLACK_RECORDS

    def _rewrite(self) -> None:
        """Replace the file by the fewest records; where that fails, the old one goes on.

        Raises OSError when there is no old one.
        """
        ledger = compacted(self.ledger, boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        header = json.dumps({"version": VERSION, "boot_id": self._boot_id}).encode()
        records = tuple(records_of(ledger))
        content = b"".join(map(_sealed, (header, *map(_RECORD.dump_json, records))))
        try:
            fd = _replace_file(self._path, content)
        except OSError:
            if self._fd < 0:
                raise
            return
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._length = fd, len(content)
        self._compact_length = self._length
        self.ledger, self._records = ledger, len(records)


def boot_id() -> str:
    """Return what the kernel calls this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _sealed(content: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(content), content)


def _unsealed(line: bytes) -> bytes:
    checksum, _, content = line.partition(b" ")
    if int(checksum, 16) != zlib.crc32(content):
        raise ValueError("checksum does not match")
    return content


def _replace_file(path: Path, content: bytes) -> int:
    temporary = path.with_suffix(".new")
    fd = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, content) < len(content):
            raise OSError(f"{temporary} did not fit")
        temporary.rename(path)
    except OSError:
        os.close(fd)
        with suppress(OSError):
            temporary.unlink()
        raise
    return fd
