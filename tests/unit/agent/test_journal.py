# SPDX-License-Identifier: Apache-2.0
"""The journal as a file: what survives, what is void, and what a damaged one may never do."""

import errno
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devicemount_agent import journal as journal_module
from devicemount_agent.errors import NodeUnavailable
from devicemount_agent.journal import (
    MOST_UNREAD,
    READ_LIMIT_BYTES,
    SLACK_RECORDS,
    Journal,
    replay,
    replayed,
)
from devicemount_agent.ledger import (
    Committed,
    Earlier,
    Grant,
    Granted,
    Guarded,
    Ledger,
    Lost,
    Record,
    Removed,
    Seen,
    Spent,
    Stage,
    Unguarded,
    after,
)
from devicemount_agent.model import (
    Access,
    ContainerID,
    Device,
    DeviceID,
    DeviceNode,
    DeviceNumber,
    MountUID,
    PodUID,
    ResourceName,
)
from devicemount_agent.requests import Epoch, MountKey, Order, ShadowPod, Target

BOOT = "8a5a7a3e-boot"
KEY = MountKey(MountUID("11111111-mount"), PodUID("22222222-pod"))
VCS1 = DeviceNumber("c", 7, 1)


def grant(shadow: str = "shadow-a", container: str = "c1", path: str = "/dev/vcs1") -> Grant:
    node = DeviceNode(path, path, VCS1, Access.READ | Access.WRITE)
    return Grant(
        key=KEY,
        mount_name="notebook",
        shadow=ShadowPod(PodUID(shadow), f"dm-11111111-22222222-{shadow[-1]}"),
        target=Target("team-a", "notebook-0", "notebook"),
        container_id=ContainerID(container),
        devices=(Device(ResourceName("example.com/vcs"), DeviceID(f"id-{shadow}"), (node,)),),
        earlier=(Earlier(VCS1, Access.NONE),),
        made=frozenset({path}),
    )


def order(revision: int, leader: int = 1) -> Order:
    return Order(Epoch(lease_created_ns=leader, transitions=0, lease_uid="lease-uid"), revision)


UIDS = st.sampled_from([PodUID("shadow-a"), PodUID("shadow-b"), PodUID("shadow-c")])
RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(lambda uid, c: Granted(grant(uid, c)), UIDS, st.sampled_from(["c1", "c2"])),
    st.builds(Committed, UIDS, st.just(frozenset({"/dev/vcs1"})), st.just(1)),
    st.builds(Lost, UIDS),
    st.builds(Removed, UIDS),
    st.builds(lambda r: Seen(KEY, order(r), 1), st.integers(0, 9)),
    st.builds(Spent, UIDS, st.integers(0, 9)),
    st.builds(Unguarded, st.just(KEY), st.integers(0, 9)),
    st.builds(Guarded, st.just(KEY)),
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(directory: Path) -> Iterator[Journal]:
    opened = Journal(directory, boot_id=BOOT)
    yield opened
    opened.close()


def reopened(directory: Path, boot_id: str = BOOT) -> tuple[Ledger, str]:
    opened = Journal(directory, boot_id=boot_id)
    opened.close()
    return opened.ledger, opened.damage


def written(directory: Path, *records: Record) -> bytes:
    opened = Journal(directory, boot_id=BOOT)
    for record in records:
        opened.append(record)
    opened.close()
    return (directory / "journal").read_bytes()


def test_what_was_written_is_what_a_restarted_agent_reads(directory: Path) -> None:
    records = (
        Seen(KEY, order(3), 7),
        Granted(grant()),
        Committed(PodUID("shadow-a"), frozenset(), 9),
    )
    written(directory, *records)

    ledger, damage = reopened(directory)

    assert damage == ""
    assert ledger.grants[PodUID("shadow-a")].stage is Stage.COMMITTED
    assert ledger.grants[PodUID("shadow-a")].devices == grant().devices
    assert ledger.is_outdated(KEY, order(2))
    assert not ledger.is_outdated(KEY, order(3))


def test_another_boot_voids_it(directory: Path) -> None:
    written(directory, Granted(grant()))
    assert reopened(directory, boot_id="another-boot") == (Ledger(), "")


def test_a_version_that_is_not_known_grants_nothing(directory: Path) -> None:
    directory.mkdir()
    header = b'{"version": 2, "boot_id": "8a5a7a3e-boot"}'
    import zlib

    (directory / "journal").write_bytes(b"%08x %b\n" % (zlib.crc32(header), header))
    opened = Journal(directory, boot_id=BOOT)
    with pytest.raises(NodeUnavailable, match="version 2 is not known"):
        opened.append(Granted(grant()))
    opened.close()
    assert (directory / "journal").read_bytes().count(b"version") == 1


def test_a_torn_tail_is_a_write_that_never_happened(directory: Path) -> None:
    written(directory, Granted(grant()))
    noted = (directory / "lock").read_bytes()
    raw = written(directory, Removed(PodUID("shadow-a")))
    (directory / "journal").write_bytes(raw[:-5])
    (directory / "lock").write_bytes(noted)

    ledger, damage = reopened(directory)

    assert damage == ""
    assert list(ledger.grants) == ["shadow-a"]


def test_a_second_agent_does_not_open_it(journal: Journal, directory: Path) -> None:
    with pytest.raises(BlockingIOError, match="another agent of this node has the journal"):
        Journal(directory, boot_id=BOOT)


def test_a_damaged_record_refuses_grants_but_not_removals(directory: Path) -> None:
    raw = written(
        directory, Granted(grant()), Removed(PodUID("shadow-b")), Lost(PodUID("shadow-b"))
    )
    lines = raw.split(b"\n")
    lines[2] = lines[2].replace(b"removed", b"remover")
    (directory / "journal").write_bytes(b"\n".join(lines))

    opened = Journal(directory, boot_id=BOOT)
    assert opened.damage.startswith("line 3: ")
    with pytest.raises(NodeUnavailable, match="damaged, nothing is granted: line 3"):
        opened.append(Granted(grant("shadow-c")))
    opened.append(Removed(PodUID("shadow-a")))
    opened.close()

    ledger, damage = reopened(directory)
    assert damage.startswith("line 3: ")
    assert not ledger.grants


@pytest.mark.parametrize(
    "content",
    [
        b'{"kind":"removed","shadow_uid":1}',
        b'{"kind":"removed"}',
        b'{"kind":"nothing"}',
        b'{"kind":"removed","shadow_uid":"\xff"}',
        b'{"kind":"removed","x":' + b"[" * 100_000 + b"}",
        b"[]",
    ],
    ids=["another type", "incomplete", "unknown", "no text", "nested without end", "no record"],
)
def test_what_is_no_record_is_damage_though_its_checksum_matches(content: bytes) -> None:
    header = b'{"version": 1, "boot_id": "%b"}' % BOOT.encode()
    lines = b"".join(b"%08x %b\n" % (zlib.crc32(one), one) for one in (header, content))
    assert replay(lines, boot_id=BOOT).damage.startswith("line 2: ")


@pytest.mark.parametrize("keep", ["all but one line", "only the header", "nothing", "no file"])
def test_a_journal_that_was_cut_is_damaged(directory: Path, keep: str) -> None:
    raw = written(directory, Granted(grant()), Lost(PodUID("shadow-a")))
    lines = raw.splitlines(keepends=True)
    kept = {"all but one line": len(lines) - 1, "only the header": 1}.get(keep, 0)
    (directory / "journal").write_bytes(b"".join(lines[:kept]))
    if keep == "no file":
        (directory / "journal").unlink()

    opened = Journal(directory, boot_id=BOOT)
    missing = len(raw) - len(b"".join(lines[:kept]))
    assert opened.damage == f"{missing} bytes are missing at its end"
    with pytest.raises(NodeUnavailable, match="damaged, nothing is granted"):
        opened.append(Granted(grant("shadow-c")))
    opened.close()


@pytest.mark.parametrize("noted", [b"", b"spoilt\n"], ids=["emptied", "spoilt"])
def test_records_whose_length_nobody_notes_are_damaged(directory: Path, noted: bytes) -> None:
    raw = written(directory, Granted(grant()), Lost(PodUID("shadow-a")))
    (directory / "journal").write_bytes(b"".join(raw.splitlines(keepends=True)[:2]))
    (directory / "lock").write_bytes(noted)
    assert reopened(directory)[1] == "how long it was is not noted"


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, READ_LIMIT_BYTES + 1)


FOREIGN: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a directory": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("/nowhere/at/all"),
    "a link without end": lambda path: path.symlink_to("/dev/zero"),
    "a device": lambda path: os.mknod(path, 0o20600, os.makedev(1, 5)),
    "larger than any": sparse,
}


@pytest.mark.parametrize("noted", ["noted", "not noted"])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_cannot_be_a_journal_is_put_aside_as_a_damaged_one(
    directory: Path, what: str, noted: str
) -> None:
    path = directory / "journal"
    written(directory, Granted(grant()))
    path.unlink()
    if noted == "not noted":
        (directory / "lock").unlink()
    FOREIGN[what](path)
    stood = path.lstat().st_ino
    why = "more than a journal ever has" if what == "larger than any" else "no plain file"
    assert why in replayed(directory, boot_id=BOOT).damage
    assert path.lstat().st_ino == stood, "who only reads leaves it"

    opened = Journal(directory, boot_id=BOOT)
    assert why in opened.damage
    assert str(path) in opened.damage
    assert not opened.is_first
    with pytest.raises(NodeUnavailable, match="damaged, nothing is granted"):
        opened.append(Granted(grant()))
    assert (directory / "journal.unread").lstat().st_ino == stood
    opened.close()

    opened = Journal(directory, boot_id=BOOT)
    assert opened.damage.endswith(" bytes are missing at its end"), "a death does not hide it"
    opened.append(Lost(PodUID("shadow-a")))
    opened.renew([Granted(grant("shadow-b"))])
    opened.close()
    ledger, damage = reopened(directory)
    assert (list(ledger.grants), damage) == (["shadow-b"], "")
    assert (directory / "journal.unread").lstat().st_ino == stood


def full_directory(path: Path) -> None:
    path.mkdir()
    (path / "file").touch()


@pytest.mark.parametrize("second", [os.mkfifo, full_directory, sparse])
@pytest.mark.parametrize("first", [os.mkfifo, full_directory, sparse])
def test_what_is_put_aside_does_not_meet_what_was_put_aside_before(
    directory: Path, first: Callable[[Path], None], second: Callable[[Path], None]
) -> None:
    path = directory / "journal"
    directory.mkdir(exist_ok=True)
    stood = []
    for make in (first, second):
        path.unlink(missing_ok=True)
        make(path)
        stood.append(path.lstat().st_ino)
        opened = Journal(directory, boot_id=BOOT)
        opened.renew([])
        opened.close()
    names = ("journal.unread", "journal.unread-1")
    assert [(directory / name).lstat().st_ino for name in names] == stood


def test_who_cannot_be_put_aside_is_named(directory: Path) -> None:
    path = directory / "journal"
    written(directory, Granted(grant()))
    path.unlink()
    path.mkdir()
    (directory / "journal.unread").mkdir()
    for number in range(1, MOST_UNREAD):
        (directory / f"journal.unread-{number}").mkdir()
    with pytest.raises(OSError, match="cannot be put aside, remove it") as raised:
        Journal(directory, boot_id=BOOT)
    assert raised.value.filename == str(path)


def test_what_is_in_use_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "journal"
    written(directory, Granted(grant()))
    path.unlink()
    path.mkdir()

    def busy(self: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self), None, str(target))

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(OSError, match="cannot be put aside, unmount or remove it") as raised:
        Journal(directory, boot_id=BOOT)
    assert (raised.value.errno, raised.value.filename) == (errno.EBUSY, str(path))


@pytest.mark.parametrize("name", ["journal.damaged", "journal.new"])
def test_a_directory_in_the_place_of_a_file_of_ours_is_put_aside(
    directory: Path, name: str
) -> None:
    directory.mkdir(exist_ok=True)
    full_directory(directory / name)
    opened = Journal(directory, boot_id=BOOT)
    opened.doubt("somebody took it")
    opened.renew([Granted(grant())])
    opened.close()
    assert (directory / f"{name}.unread" / "file").exists()
    assert reopened(directory)[1] == ""


def test_a_noted_length_that_is_no_number_is_none(directory: Path) -> None:
    written(directory, Granted(grant()))
    noted = f"{BOOT} long".encode()
    (directory / "lock").write_bytes(b"%08x %b\n" % (zlib.crc32(noted), noted))
    assert reopened(directory)[1] == "how long it was is not noted"


@pytest.mark.parametrize("what", [what for what in FOREIGN if what != "larger than any"])
def test_a_lock_that_is_none_is_named_and_not_replaced(directory: Path, what: str) -> None:
    """Who made it anew would have it beside an agent that has the former one."""
    raw = written(directory, Granted(grant()))
    (directory / "lock").unlink()
    FOREIGN[what](directory / "lock")
    for read in (Journal, replayed):
        with pytest.raises(OSError, match="plain file, remove it when no other agent") as raised:
            read(directory, boot_id=BOOT)
        assert raised.value.filename == str(directory / "lock")
    assert (directory / "journal").read_bytes() == raw


@pytest.mark.parametrize("content", [b"\0", b"x" * 300, b"\n" * 300])
def test_a_lock_without_end_is_a_length_that_nobody_notes_until_it_is_written(
    directory: Path, content: bytes
) -> None:
    written(directory, Granted(grant()))
    (directory / "lock").write_bytes(content)
    sparse(directory / "lock")
    opened = Journal(directory, boot_id=BOOT)
    assert opened.damage == "how long it was is not noted"
    opened.renew([])
    opened.close()
    assert reopened(directory)[1] == ""


@pytest.mark.parametrize("what", FOREIGN)
def test_what_stands_where_it_is_written_anew_is_no_obstacle(directory: Path, what: str) -> None:
    written(directory, Granted(grant()))
    FOREIGN[what](directory / "journal.new")
    ledger, damage = reopened(directory)
    assert (list(ledger.grants), damage) == (["shadow-a"], "")


def test_nothing_is_granted_that_would_make_it_too_large_to_be_read(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Journal(directory, boot_id=BOOT)
    opened.append(Granted(grant()))
    size = (directory / "journal").stat().st_size
    monkeypatch.setattr(journal_module, "MOST_BYTES", size + journal_module.RESERVE_BYTES)
    with pytest.raises(NodeUnavailable, match="would have more than"):
        opened.append(Granted(grant("shadow-b")))
    opened.note(Seen(KEY, order(1), 1))
    assert opened.ledger.is_outdated(KEY, order(0))
    opened.append(Removed(PodUID("shadow-a")))
    opened.close()
    ledger, damage = reopened(directory)
    assert (dict(ledger.grants), damage) == ({}, "")


def test_what_is_missing_stays_missing_whatever_is_appended(directory: Path) -> None:
    raw = written(directory, Granted(grant()), Removed(PodUID("shadow-a")))
    (directory / "journal").write_bytes(b"".join(raw.splitlines(keepends=True)[:2]))

    opened = Journal(directory, boot_id=BOOT)
    for revision in range(3):
        opened.append(Seen(KEY, order(revision), 1))
    opened.close()

    assert reopened(directory)[1].endswith(" bytes are missing at its end")


def test_a_first_journal_is_told_from_one_without_grants(directory: Path) -> None:
    for _ in range(2):  # until there is a record, nothing tells that there was one
        opened = Journal(directory, boot_id=BOOT)
        assert (opened.is_first, opened.damage) == (True, "")
        opened.close()
    written(directory, Seen(KEY, order(1), 1))
    opened = Journal(directory, boot_id=BOOT)
    assert not opened.is_first
    opened.close()
    booted = Journal(directory, boot_id="another-boot")
    assert (booted.is_first, booted.damage) == (True, "")
    booted.close()


def test_a_death_at_the_first_record_is_no_damage(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Journal(directory, boot_id=BOOT)
    real = os.pwrite

    def dying(fd: int, data: bytes, offset: int) -> int:
        real(fd, data, offset)
        if b"kind" in data:
            raise SystemExit
        return len(data)

    monkeypatch.setattr(os, "pwrite", dying)
    with pytest.raises(SystemExit):
        opened.append(Granted(grant()))
    monkeypatch.undo()
    opened.close()
    ledger, damage = reopened(directory)
    assert (list(ledger.grants), damage) == (["shadow-a"], "")


def test_a_doubt_is_forgotten_only_with_a_journal_that_is_written_anew(directory: Path) -> None:
    opened = Journal(directory, boot_id=BOOT)
    opened.doubt("somebody took it")
    with pytest.raises(NodeUnavailable, match="nothing is granted: somebody took it"):
        opened.append(Granted(grant()))
    opened.append(Seen(KEY, order(1), 1))
    opened.close()
    assert reopened(directory)[1] == "1 bytes are missing at its end"

    opened = Journal(directory, boot_id=BOOT)
    opened.renew([Granted(grant())])
    opened.close()
    ledger, damage = reopened(directory)
    assert (list(ledger.grants), damage) == (["shadow-a"], "")


def test_a_damaged_journal_is_that_until_another_one_stands_in_its_place(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Journal(directory, boot_id=BOOT)
    opened.doubt("somebody took it")
    opened.append(Seen(KEY, order(1), 1))

    def dying(self: Path, target: Path) -> None:
        raise SystemExit

    monkeypatch.setattr(Path, "rename", dying)
    with pytest.raises(SystemExit):
        opened.renew([])
    monkeypatch.undo()
    opened.close()
    assert reopened(directory)[1] == "1 bytes are missing at its end"


def test_a_file_that_is_longer_than_noted_is_a_death_between_two_writes(directory: Path) -> None:
    written(directory, Granted(grant()))
    noted = (directory / "lock").read_bytes()
    raw = written(directory, Removed(PodUID("shadow-a")))
    (directory / "lock").write_bytes(noted)
    assert len(raw) > int(noted.split()[2])
    assert reopened(directory) == (Ledger(), "")


def test_a_damaged_journal_is_renewed_as_intents_and_kept_aside(directory: Path) -> None:
    raw = written(
        directory,
        Granted(grant()),
        Committed(PodUID("shadow-a"), frozenset(), 9),
        Granted(grant("shadow-b")),
        Removed(PodUID("shadow-x")),
    )
    damaged = raw.replace(b"removed", b"remover")
    (directory / "journal").write_bytes(damaged)
    opened = Journal(directory, boot_id=BOOT)

    opened.renew([Lost(PodUID("shadow-b")), Granted(grant("shadow-c"))])

    assert opened.damage == ""
    opened.append(Granted(grant("shadow-d")))
    opened.close()
    ledger, damage = reopened(directory)
    assert damage == ""
    assert {uid: g.stage for uid, g in ledger.grants.items()} == {
        "shadow-a": Stage.INTENT,
        "shadow-b": Stage.LOST,
        "shadow-c": Stage.INTENT,
        "shadow-d": Stage.INTENT,
    }
    assert ledger.grants[PodUID("shadow-a")].granted_unix_ns == 9
    assert (directory / "journal.damaged").read_bytes() == damaged


def test_a_full_disk_at_the_start_leaves_the_old_file_in_use(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(directory, Granted(grant()))

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    opened = Journal(directory, boot_id=BOOT)
    monkeypatch.undo()
    assert list(opened.ledger.grants) == ["shadow-a"]
    opened.append(Removed(PodUID("shadow-a")))
    opened.close()
    assert reopened(directory) == (Ledger(), "")


def test_a_full_disk_changes_nothing_and_heals_by_itself(
    journal: Journal, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append(Granted(grant()))

    def full(fd: int, data: bytes, offset: int) -> int:
        real(fd, data[:10], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NodeUnavailable, match="No space left"):
        journal.append(Granted(grant("shadow-b")))
    assert list(journal.ledger.grants) == ["shadow-a"]
    monkeypatch.undo()

    journal.append(Removed(PodUID("shadow-a")))
    journal.close()
    assert reopened(directory) == (Ledger(), "")
    journal.__init__(directory, boot_id=BOOT)  # type: ignore[misc]  # for the fixture to close


def test_it_is_written_anew_before_it_grows_without_bound(
    journal: Journal, directory: Path
) -> None:
    journal.append(Granted(grant()))
    for revision in range(3 * SLACK_RECORDS):
        journal.append(Seen(KEY, order(revision), 1))

    raw = (directory / "journal").read_bytes()
    assert raw.count(b"\n") < SLACK_RECORDS + 10
    said = replay(raw, boot_id=BOOT)
    assert said.ledger == journal.ledger
    assert said.ledger.seen[KEY].order == order(3 * SLACK_RECORDS - 1)


@settings(deadline=None)
@given(records=st.lists(RECORDS, max_size=12), cut=st.integers(0, 4000))
def test_any_prefix_of_any_log_never_grants_what_was_removed(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], cut: int
) -> None:
    raw = written(tmp_path_factory.mktemp("log") / "journal", *records)

    said = replay(raw[: min(cut, len(raw))], boot_id=BOOT)

    assert said.damage == ""
    believed = records[: said.records]
    last = {
        record.shadow_uid if not isinstance(record, Granted) else record.grant.shadow.uid: record
        for record in believed
        if isinstance(record, Granted | Lost | Removed)
    }
    for uid, stands in said.ledger.grants.items():
        assert isinstance(last[uid], Granted) or stands.stage is Stage.LOST
    assert not {uid for uid, record in last.items() if isinstance(record, Removed)} & set(
        said.ledger.grants
    )


@settings(deadline=None)
@given(records=st.lists(RECORDS, min_size=1, max_size=12), cut=st.integers(0, 4000))
def test_any_cut_of_what_was_noted_is_found(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], cut: int
) -> None:
    directory = tmp_path_factory.mktemp("log") / "journal"
    raw = written(directory, *records)
    (directory / "journal").write_bytes(raw[: min(cut, len(raw))])

    said = replayed(directory, boot_id=BOOT)

    assert bool(said.damage) == (cut < len(raw))


@settings(deadline=None)
@given(records=st.lists(RECORDS, min_size=1, max_size=12), data=st.data())
def test_one_line_that_is_lost_or_spoilt_is_found(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("log") / "journal"
    lines = written(directory, *records).splitlines(keepends=True)
    which = data.draw(st.integers(0, len(lines) - 1))
    lines[which] = data.draw(st.sampled_from([b"", b"\n", b"00000000 {}\n", lines[which][9:]]))
    (directory / "journal").write_bytes(b"".join(lines))

    assert replayed(directory, boot_id=BOOT).damage


@settings(deadline=None)
@given(records=st.lists(RECORDS, max_size=12))
def test_what_is_written_anew_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    directory = tmp_path_factory.mktemp("log") / "journal"
    before = replay(written(directory, *records), boot_id=BOOT).ledger
    ledger, damage = reopened(directory)
    again = replay((directory / "journal").read_bytes(), boot_id=BOOT)
    assert damage == ""
    assert (ledger.grants, ledger.epoch) == (before.grants, before.epoch)
    assert again.ledger == ledger


@settings(deadline=None)
@given(records=st.lists(RECORDS, min_size=1, max_size=8), data=st.data())
def test_one_flipped_byte_is_found_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], data: st.DataObject
) -> None:
    raw = written(tmp_path_factory.mktemp("log") / "journal", *records)
    place = data.draw(st.integers(0, len(raw) - 2))
    flipped = raw[:place] + bytes([raw[place] ^ 0x01]) + raw[place + 1 :]

    said = replay(flipped, boot_id=BOOT)

    assert said.damage or said.ledger == replay(raw, boot_id=BOOT).ledger


def test_replay_is_the_fold_of_its_records(directory: Path) -> None:
    records: list[Record] = [
        Granted(grant()),
        Committed(PodUID("shadow-a"), frozenset(), 9),
        Lost(PodUID("shadow-a")),
    ]
    ledger = Ledger()
    for record in records:
        ledger = after(ledger, record)
    assert replay(written(directory, *records), boot_id=BOOT).ledger == ledger
