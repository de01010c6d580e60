# SPDX-License-Identifier: Apache-2.0
"""The agent's memory: one file in a tmpfs, that outlives the agent and, like the grants themselves,
not the boot.

One record a line, `<crc32> <json>`, appended by one write and never synced: the page cache survives
our death. How long the file is, stands beside it, so that one that was cut is known; what follows
that length without a newline is a write that never happened. A record that is damaged or missing
may have been a removal: nothing is granted until rebuild.py has found the truth and the journal is
written anew; what is known can be removed. A full disk refuses grants and leaves room for what ends
them.
"""

import errno
import fcntl
import io
import json
import os
import stat
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import msgspec

from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.kernel.files import beginning_of, regular_file, reserve
from devicemount_agent.ledger import (
    Granted,
    Ledger,
    Record,
    Seen,
    after,
    compacted,
    doubted,
    records_of,
)

VERSION = 1
NAME = "journal"
LENGTH_NAME = "lock"  # also the lock
UNREAD_SUFFIX = ".unread"  # of what stood in the journal's place and cannot be one
MOST_UNREAD = 16  # so many of them are kept
SLACK_RECORDS = 1024  # so many records more than needed, then the file is written anew
RESERVE_BYTES = 1 << 16  # a grant leaves room for the ends of some 200
SLACK_BYTES = 1 << 20  # or so many bytes: a grant with a driver's libraries has some 10 KiB
MOST_BYTES = 16 << 20  # nothing is granted beyond: a node has some hundred pods
READ_LIMIT_BYTES = 2 * MOST_BYTES  # with what ends grants, which is always written
_NOTED_LIMIT_BYTES = 256  # a noted length has some 70

_DECODERS: Mapping[str, msgspec.json.Decoder[Any]] = {
    str(field.default): msgspec.json.Decoder(kind)
    for kind in get_args(Record)
    for field in fields(kind)
    if field.name == "kind"
}
_ENCODER = msgspec.json.Encoder()


class _Kind(msgspec.Struct):
    """What every record has."""

    kind: str


@dataclass(frozen=True, slots=True)
class Replay:
    """What a journal's bytes say."""

    ledger: Ledger
    records: int  # lines that were understood, without the header
    length_bytes: int  # up to the end of the last whole line
    damage: str  # "" or what is wrong with it
    missing_bytes: int = 0  # behind that end
    is_first: bool = False  # no record and no noted length of this boot: or all of it is gone
    is_unread: bool = False  # what stands in its place cannot be one


def replay(raw: bytes, *, boot_id: str, written_bytes: int | None = 0) -> Replay:
    """Add up a journal of which at least so much was written; None: nobody noted how much.

    Pure: the same bytes say the same. Another boot's journal says nothing.
    """
    said = _replayed(raw, raw.rfind(b"\n") + 1, boot_id)
    if written_bytes is None:
        unnoted = "how long it was is not noted" if said.records else ""
        is_first = not said.records and not said.damage
        return replace(said, damage=said.damage or unnoted, is_first=is_first)
    missing = max(written_bytes - said.length_bytes, 0)
    cut = f"{missing} bytes are missing at its end" if missing else ""
    return replace(said, damage=said.damage or cut, missing_bytes=missing)


def _replayed(raw: bytes, length: int, boot_id: str) -> Replay:
    if not length:
        return Replay(Ledger(), 0, 0, "")
    lines = (line[:-1] for line in io.BytesIO(raw) if line.endswith(b"\n"))
    try:
        header = json.loads(_unsealed(next(lines)))
        if header["version"] != VERSION:
            return Replay(Ledger(), 0, length, f"version {header['version']} is not known")
        if header["boot_id"] != boot_id:
            return Replay(Ledger(), 0, 0, "")
    except (ValueError, KeyError, TypeError) as error:
        return Replay(Ledger(), 0, length, f"header: {error}")
    ledger, understood, damage = Ledger(), 0, ""
    for number, line in enumerate(lines, start=2):
        try:
            ledger = after(ledger, _to_record(_unsealed(line)))
            understood += 1
        except (ValueError, KeyError, RecursionError, msgspec.MsgspecError) as error:
            damage = damage or f"line {number}: {error}"
    return Replay(ledger, understood, length, damage)


class Journal:
    """The file and what it adds up to. One process at a time may have it open."""

    def __init__(self, directory: Path, *, boot_id: str) -> None:
        """Open or create it, and put aside what stands in its place and cannot be one.

        Raises OSError, BlockingIOError when another agent has it.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / NAME
        self._boot_id = boot_id
        _demand_plain(directory / LENGTH_NAME)
        self._lock_fd = _opened(directory / LENGTH_NAME, os.O_RDWR)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock_fd)
            why = "another agent of this node has the journal"
            raise BlockingIOError(error.errno, why, str(self._path)) from error
        said = replayed(directory, boot_id=boot_id)
        self.ledger = said.ledger
        self.damage = said.damage
        self.is_first = said.is_first
        # While it is damaged, so much more is noted than there is: else what is appended would hide
        # that something is missing.
        self._missing_bytes = max(said.missing_bytes, 1) if said.damage else 0
        self._records = said.records
        self._length = self._compact_length = said.length_bytes
        self._reserved = 0
        self._fd = -1
        if said.is_unread:
            self._note_length(self._missing_bytes)  # so that a later agent knows of it
            _put_aside(self._path)
        if said.damage or said.length_bytes:
            self._fd = _opened(self._path, os.O_WRONLY)
        if not said.damage:
            self._compact()

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._lock_fd)

    def doubt(self, why: str) -> None:
        """Take it for one that was lost; so do later agents, once anything was appended."""
        self.damage, self._missing_bytes = why, 1

    def note(self, record: Seen) -> None:
        """Believe a request's order; write it where that takes no room from what ends grants.

        Where it does, memory is enough: what it is held against is under way, and ends with us.
        """
        try:
            self._reserve(self._length + len(_line(record)) + RESERVE_BYTES)
            self.append(record)
        except NodeUnavailable:  # a grant, which needs the same room, is refused and says so
            self.ledger = after(self.ledger, record)

    def append(self, record: Record) -> None:
        """Write one record, then believe it. Raises NodeUnavailable, having changed nothing."""
        if isinstance(record, Granted) and self.damage:
            raise NodeUnavailable(f"the journal is damaged, nothing is granted: {self.damage}")
        line = _line(record)
        if isinstance(record, Granted):
            self._reserve(self._length + len(line) + RESERVE_BYTES)
        self._write(line)
        self.ledger = after(self.ledger, record)
        self._records += 1
        if not self.damage and self._is_due():
            self._compact()

    def renew(self, found: Iterable[Record]) -> None:
        """Replace a damaged journal by what is left of it and was found out; keep it aside.

        All grants are intents again: whether they stand, who takes them up has to confirm. Raises
        OSError.
        """
        ledger = reduce(after, found, doubted(self.ledger))
        aside = self._path.with_suffix(".damaged")
        _make_way(aside)
        os.link(self._path, aside)
        self.is_first = False
        self._rewrite(ledger)
        self.damage, self._missing_bytes = "", 0

    def _write(self, line: bytes) -> None:
        end = self._length + len(line)
        try:
            if self.is_first:  # else a death between the two writes would look like damage
                self._note_length(self._length + self._missing_bytes)
            written = os.pwrite(self._fd, line, self._length)
            if written < len(line):
                raise OSError(f"{written} of {len(line)} bytes fitted")
            self._note_length(end + self._missing_bytes)
        except OSError as error:
            self._reserved = 0
            with suppress(OSError):  # what stands behind the end has no newline: replay ignores it
                os.ftruncate(self._fd, self._length)
            raise NodeUnavailable(f"the journal {self._path} cannot be written: {error}") from error
        self._length, self.is_first = end, False

    def _reserve(self, end: int) -> None:
        """Have room up to there, so that what is granted can be removed on a full disk."""
        if end > MOST_BYTES:
            raise NodeUnavailable(
                f"the journal {self._path} would have more than {MOST_BYTES} bytes"
            )
        if end <= self._reserved:
            return
        try:
            _take_room(self._fd, end)
        except OSError as error:
            raise NodeUnavailable(f"no room for the journal {self._path}: {error}") from error
        self._reserved = end

    def _note_length(self, length_bytes: int) -> None:
        """Write how long the file is at least; 0 while it is being replaced."""
        os.pwrite(self._lock_fd, _to_noted(self._boot_id, length_bytes), 0)

    def _is_due(self) -> bool:
        now = self.ledger
        needed = len(now.grants) + len(now.seen) + len(now.spent) + len(now.unguarded)
        twice = min(2 * self._compact_length, MOST_BYTES - 2 * SLACK_BYTES)
        is_long = self._length > twice + SLACK_BYTES
        return is_long or self._records > 2 * needed + SLACK_RECORDS

    def _compact(self) -> None:
        """Write the fewest records; where that fails, the old file goes on, with what room it has.

        Raises OSError when there is no old one.
        """
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        try:
            self._rewrite(compacted(self.ledger, boot_ns=now_ns))
        except OSError:
            if self._fd < 0:
                raise

    def _rewrite(self, ledger: Ledger) -> None:
        """Put a new file into the old one's place; where it has grants, with room for their end."""
        header = json.dumps({"version": VERSION, "boot_id": self._boot_id}).encode()
        records = tuple(records_of(ledger))
        content = b"".join(map(_sealed, (header, *map(_ENCODER.encode, records))))
        temporary = self._path.with_suffix(".new")
        reserved = len(content) + RESERVE_BYTES if ledger.grants else 0
        fd = _created(temporary, content, room_bytes=reserved)
        try:
            if not (self.is_first or self.damage):  # a damaged one is that until it is replaced
                self._note_length(0)
            temporary.rename(self._path)
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._length, self._reserved = fd, len(content), reserved
        self._compact_length = self._length
        self.ledger, self._records = ledger, len(records)
        if not self.is_first:  # then the length is noted with the first record
            self._note_length(self._length)


def replayed(directory: Path, *, boot_id: str) -> Replay:
    """Read a journal as it is now, whoever has it open. Raises OSError."""
    _demand_plain(directory / LENGTH_NAME)
    while True:
        noted = _content(directory / LENGTH_NAME, limit_bytes=_NOTED_LIMIT_BYTES)
        unread = _unread(directory / NAME)
        raw = b"" if unread else _content(directory / NAME, limit_bytes=READ_LIMIT_BYTES)
        if noted != _content(directory / LENGTH_NAME, limit_bytes=_NOTED_LIMIT_BYTES):
            continue  # it grew or was replaced meanwhile
        said = replay(raw, boot_id=boot_id, written_bytes=_from_noted(noted, boot_id=boot_id))
        if unread:
            return replace(said, damage=unread, is_first=False, is_unread=True)
        return said


def boot_id() -> str:
    """Return what the kernel calls this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _unread(path: Path) -> str:
    """Say why what stands in the journal's place cannot be one; "" if it can."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return ""
    if not stat.S_ISREG(found.st_mode):
        return f"no plain file at {path}"
    if found.st_size > READ_LIMIT_BYTES:
        return f"{found.st_size} bytes at {path}, more than a journal ever has"
    return ""


def _make_way(path: Path) -> None:
    """Remove a former file of ours; a directory, which is none, is put aside. Raises OSError."""
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        _put_aside(path)


def _put_aside(path: Path) -> None:
    """Give what cannot be ours a name that nothing has. Raises OSError."""
    first = path.with_name(path.name + UNREAD_SUFFIX)
    others = (first.with_name(f"{first.name}-{number}") for number in range(1, MOST_UNREAD))
    free = next((name for name in (first, *others) if not os.path.lexists(name)), None)
    if free is None:
        why = f"cannot be put aside, remove it and what was put aside as {first.name}*"
        raise OSError(errno.EEXIST, why, str(path))
    try:
        path.rename(free)
    except OSError as error:  # such as a mount point
        why = f"cannot be put aside, unmount or remove it: {error.strerror}"
        raise OSError(error.errno, why, str(path)) from error


def _demand_plain(path: Path) -> None:
    """Raise OSError for a lock that is something else.

    It is not replaced: an agent that has the former one may run.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            why = "is no plain file, remove it when no other agent of this node runs"
            raise OSError(errno.EINVAL, why, str(path))


def _opened(path: Path, flags: int) -> int:
    """Open or create a plain file; what was put there since it was looked at is not waited for."""
    safe = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, flags | safe, 0o600)


def _content(path: Path, *, limit_bytes: int) -> bytes:
    try:
        with regular_file(path, flags=os.O_NOFOLLOW) as fd:
            return beginning_of(fd, limit_bytes=limit_bytes)
    except FileNotFoundError:
        return b""


def _to_record(content: bytes) -> Record:
    """Raises MsgspecError and KeyError for what is none."""
    record: Record = _DECODERS[msgspec.json.decode(content, type=_Kind).kind].decode(content)
    return record


def _line(record: Record) -> bytes:
    return _sealed(_ENCODER.encode(record))


def _sealed(content: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(content), content)


def _unsealed(line: bytes) -> bytes:
    checksum, _, content = line.partition(b" ")
    if int(checksum, 16) != zlib.crc32(content):
        raise ValueError("checksum does not match")
    return content


def _to_noted(boot_id: str, length_bytes: int) -> bytes:
    return _sealed(f"{boot_id} {length_bytes:020}".encode())


def _from_noted(raw: bytes, *, boot_id: str) -> int | None:
    """Return the noted length; None where none of this boot was."""
    try:
        of_boot, length_bytes = _unsealed(raw.partition(b"\n")[0]).decode().split(" ")
        return int(length_bytes) if of_boot == boot_id else None
    except ValueError:
        return None


def _created(path: Path, content: bytes, *, room_bytes: int) -> int:
    _make_way(path)  # of an agent that died meanwhile
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, content) < len(content):
            raise OSError(f"{path} did not fit")
        _take_room(fd, room_bytes)
    except OSError:
        os.close(fd)
        with suppress(OSError):
            path.unlink()
        raise
    return fd


def _take_room(fd: int, length_bytes: int) -> None:
    """Have room up to there, on a file system that can say so. Raises OSError."""
    if length_bytes == 0:
        return
    try:
        reserve(fd, offset=0, length_bytes=length_bytes)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
