# SPDX-License-Identifier: Apache-2.0
"""What records add up to: order of requests, shared paths and numbers, tombstones."""

from dataclasses import replace

import pytest

from devicemount_agent.ledger import (
    SHADOW_NOT_RUNNING,
    TOMBSTONE_AGE_NS,
    UNGUARDED_AGE_NS,
    Committed,
    Earlier,
    EpochSeen,
    Grant,
    Granted,
    Guarded,
    Ledger,
    Loss,
    Lost,
    Record,
    Removed,
    Seen,
    Stage,
    access_of,
    after,
    compacted,
    records_of,
    renumbered,
)
from devicemount_agent.model import (
    Access,
    Bound,
    Concern,
    ContainerID,
    Device,
    DeviceID,
    DeviceNode,
    DeviceNumber,
    Edits,
    EnvVar,
    Link,
    MountUID,
    PodUID,
    ResourceName,
)
from devicemount_agent.requests import Epoch, MountKey, Order, ShadowPod, Target

KEY = MountKey(MountUID("11111111-mount"), PodUID("22222222-pod"))
OTHER_KEY = MountKey(MountUID("33333333-mount"), PodUID("22222222-pod"))
A, B = PodUID("shadow-a"), PodUID("shadow-b")
FUSE = DeviceNumber("c", 10, 229)


def epoch(created_ns: int, transitions: int = 0, uid: str = "lease") -> Epoch:
    return Epoch(created_ns, transitions, uid)


def grant(uid: PodUID, *paths: str, access: Access = Access.READ, container: str = "c1") -> Grant:
    nodes = tuple(DeviceNode(path, "/dev/fuse", FUSE, access) for path in paths)
    return Grant(
        key=KEY,
        mount_name="m",
        shadow=ShadowPod(uid, f"dm-11111111-22222222-{uid[-1]}"),
        target=Target("team-a", "pod", "main"),
        container_id=ContainerID(container),
        devices=(Device(ResourceName("example.com/fuse"), DeviceID(uid), nodes),),
        earlier=(Earlier(FUSE, Access.NONE),),
    )


def ledger(*records: Record) -> Ledger:
    result = Ledger()
    for record in records:
        result = after(result, record)
    return result


@pytest.mark.parametrize(
    ("seen", "asked", "outdated"),
    [
        (Order(epoch(1), 5), Order(epoch(1), 4), True),
        (Order(epoch(1), 5), Order(epoch(1), 5), False),
        (Order(epoch(1), 5), Order(epoch(1), 6), False),
        (Order(epoch(1), 5), Order(epoch(1, 1), 0), False),
        (Order(epoch(1, 1), 0), Order(epoch(1), 9), True),
        (Order(epoch(1, 9), 5), Order(epoch(2, 0), 0), False),
        (Order(epoch(2, 0), 0), Order(epoch(1, 9), 5), True),
        (Order(epoch(1), 5), Order(epoch(1, uid="another"), 4), True),
    ],
    ids=[
        "a lower revision is",
        "the same request again is not",
        "a higher revision is not",
        "the next leader begins at 0",
        "the former leader is, whatever its revision",
        "a Lease that was made anew counts its transitions anew",
        "an older Lease is",
        "the Lease's uid orders nothing",
    ],
)
def test_outdated(seen: Order, asked: Order, *, outdated: bool) -> None:
    assert ledger(Seen(KEY, seen, 0)).is_outdated(KEY, asked) is outdated


def test_a_later_leader_fences_the_former_one_for_every_mount() -> None:
    said = ledger(Seen(KEY, Order(epoch(1, 2), 0), 0))
    assert said.is_outdated(OTHER_KEY, Order(epoch(1, 1), 7))
    assert not said.is_outdated(OTHER_KEY, Order(epoch(1, 2), 0))


def test_the_highest_epoch_outlives_its_mounts() -> None:
    said = ledger(Seen(KEY, Order(epoch(1, 2), 0), 0))
    small = compacted(said, boot_ns=TOMBSTONE_AGE_NS)
    assert not small.seen
    assert ledger(*records_of(small)).is_outdated(KEY, Order(epoch(1, 1), 0))


@pytest.mark.parametrize(
    ("records", "boot_ns", "kept"),
    [
        ([], TOMBSTONE_AGE_NS - 1, True),
        ([], TOMBSTONE_AGE_NS, False),
        ([EpochSeen(epoch(2))], 0, False),
        ([Granted(grant(A, "/dev/a"))], 10 * TOMBSTONE_AGE_NS, True),
    ],
    ids=["for ten minutes", "not longer", "not beyond a higher epoch", "as long as a grant"],
)
def test_tombstones_are_kept(records: list[Record], boot_ns: int, *, kept: bool) -> None:
    said = ledger(Seen(KEY, Order(epoch(1), 3), 0), *records)
    assert (KEY in compacted(said, boot_ns=boot_ns).seen) is kept


def test_compaction_keeps_everything_else() -> None:
    said = ledger(
        Granted(grant(A, "/dev/a")),
        Committed(A, frozenset({"/dev/a"}), 7),
        Granted(grant(B, "/dev/b")),
        Lost(B),
    )
    assert ledger(*records_of(compacted(said, boot_ns=0))) == said


def test_a_lost_grant_is_never_committed() -> None:
    said = ledger(Granted(grant(A, "/dev/a")), Lost(A), Committed(A, frozenset(), 7))
    assert said.grants[A].stage is Stage.LOST


def test_a_lost_grant_is_never_granted_again_by_who_was_at_work_with_it() -> None:
    begun = grant(A, "/dev/a")
    for again in (begun, replace(begun, stage=Stage.COMMITTED)):
        said = ledger(Granted(begun), lost(A), Granted(again))
        assert said == ledger(Granted(begun), lost(A))
    assert ledger(Granted(begun), lost(A), Removed(A), Granted(begun)).grants == {A: begun}


def lost(uid: PodUID, *, reason: str = "ReservationLost", boot_ns: int = 7) -> Lost:
    return Lost(uid, Loss(Concern(reason, "what was seen"), kill_boot_ns=boot_ns))


def test_the_first_reason_of_a_loss_counts() -> None:
    said = ledger(Granted(grant(A, "/dev/a")), lost(A), lost(A, reason=SHADOW_NOT_RUNNING))
    assert said.grants[A].loss == Loss(Concern("ReservationLost", "what was seen"), 7)
    assert said.unguarded == {}


def test_a_lost_shadow_pod_is_spent_also_when_nothing_of_it_is_left() -> None:
    said = ledger(Granted(grant(A, "/dev/a")), lost(A), Removed(A))
    assert said.grants == {}
    assert said.spent == {A: 7}
    assert compacted(said, boot_ns=6 + TOMBSTONE_AGE_NS).spent == {A: 7}
    assert compacted(said, boot_ns=7 + TOMBSTONE_AGE_NS).spent == {}


def test_a_mount_without_a_fence_is_remembered_until_one_stands() -> None:
    begun = (Granted(grant(A, "/dev/a")), lost(A, reason=SHADOW_NOT_RUNNING), Removed(A))
    said = ledger(*begun)
    assert said.unguarded == {KEY: 7}
    assert ledger(*records_of(compacted(said, boot_ns=8))) == said
    assert compacted(said, boot_ns=7 + UNGUARDED_AGE_NS).unguarded == {}
    assert ledger(*begun, Guarded(KEY)).unguarded == {}
    assert ledger(*begun, Guarded(OTHER_KEY)).unguarded == {KEY: 7}


def test_records_about_unknown_grants_change_nothing() -> None:
    assert ledger(Committed(A, frozenset(), 7), Lost(A), Removed(A)) == Ledger()


def test_the_same_number_in_two_grants_is_what_both_allow_together() -> None:
    both = (grant(A, "/dev/fuse"), grant(B, "/dev/fuse", access=Access.WRITE))
    assert access_of(both) == {FUSE: Access.READ | Access.WRITE}


@pytest.mark.parametrize(
    ("heir", "made"),
    [
        (grant(B, "/dev/x/fuse"), {"/dev/x/fuse", "/dev/x"}),
        (grant(B, "/dev/x/other"), {"/dev/x"}),
        (grant(B, "/dev/other"), set()),
        (grant(B, "/dev/x/fuse", container="c2"), set()),
    ],
    ids=["the same file", "a file beside it", "elsewhere", "another container"],
)
def test_what_was_made_goes_to_who_still_needs_it(heir: Grant, made: set[str]) -> None:
    first = replace(grant(A, "/dev/x/fuse"), made=frozenset({"/dev/x", "/dev/x/fuse"}))
    said = ledger(Granted(first), Granted(heir), Removed(A))
    assert said.grants[B].made == made


def test_what_was_allowed_before_us_is_known_by_container() -> None:
    said = ledger(Granted(grant(A, "/dev/a")), Granted(grant(B, "/dev/a", container="c2")))
    assert said.earlier_in(ContainerID("c1")) == {FUSE: Access.NONE}
    assert said.earlier_in(ContainerID("c3")) == {}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("dm-11111111-22222222-0", True),
        ("dm-11111111-22222222-63", True),
        ("dm-11111111-22222222-", False),
        ("dm-11111111-22222222-x", False),
        ("dm-11111111-22222222-\u0662", False),
        ("dm-11111111-99999999-0", False),
        ("job-0", False),
    ],
)
def test_a_mounts_shadow_pods_are_known_by_name(name: str, *, ours: bool) -> None:
    assert KEY.names(name) is ours


def test_a_commit_keeps_what_was_inherited_since_the_intent() -> None:
    former = replace(grant(A, "/dev/fuse"), made=frozenset({"/dev/fuse"}))
    state = ledger(
        Granted(former), Granted(grant(B, "/dev/fuse")), Removed(A), Committed(B, frozenset(), 1)
    )
    assert state.grants[B].made == {"/dev/fuse"}


LIBRARY = Bound("/usr/lib/one.so", "/usr/lib/one.so", device=1, inode=2, attributes=7)


def test_a_commit_says_where_mounts_were_found() -> None:
    intent = replace(grant(A, "/dev/fuse"), bound=frozenset({LIBRARY}))
    found = replace(LIBRARY, mount_id=77)
    committed = Committed(A, frozenset(), 1, frozenset({found}))
    assert ledger(Granted(intent), committed).grants[A].bound == {found}
    assert ledger(Granted(intent), Committed(A, frozenset(), 1)).grants[A].bound == {LIBRARY}


def test_a_mount_point_that_another_grant_needs_is_now_that_ones() -> None:
    one = replace(
        grant(A, "/dev/fuse"),
        bound=frozenset({LIBRARY}),
        linked=frozenset({Link("/usr/lib/l", "one.so")}),
        made=frozenset({"/usr/lib", "/usr/lib/one.so", "/usr/lib/l"}),
    )
    other = replace(grant(B, "/dev/fuse"), bound=frozenset({LIBRARY}))
    after_one = ledger(Granted(one), Granted(other), Removed(A))
    assert after_one.grants[B].made == {"/usr/lib", "/usr/lib/one.so"}


def test_a_node_without_access_has_no_rule_and_no_holders() -> None:
    none = grant(A, "/dev/fuse", access=Access.NONE)
    assert none.access() == {}
    assert none.numbers() == set()


def test_what_is_withheld_has_no_rule_and_may_still_be_held() -> None:
    withheld = replace(grant(A, "/dev/fuse"), withheld=frozenset({"/dev/fuse"}))
    assert withheld.access() == {}
    assert withheld.present() == ()
    assert withheld.numbers() == {FUSE}


def test_a_device_that_is_back_has_its_new_number() -> None:
    held = replace(
        grant(A, "/dev/fuse", "/dev/control"),
        withheld=frozenset({"/dev/fuse"}),
        stage=Stage.COMMITTED,
    )
    new = DeviceNumber("c", 10, 230)
    back = renumbered(held, {"/dev/fuse": new})
    assert [node.number for node in back.nodes()] == [new, FUSE]
    assert (back.withheld, back.stage) == (frozenset(), Stage.INTENT)


def test_edits_of_several_devices_count_once() -> None:
    shared = Edits(links=(Link("/l", "x"),), env=(EnvVar("A", "1"),))
    base = grant(A, "/dev/fuse")
    devices = tuple(replace(device, edits=shared) for device in base.devices * 2)
    own = replace(devices[1], edits=Edits(env=(EnvVar("A", "2"),)))
    edits = replace(base, devices=(*devices, own)).edits()
    assert edits == Edits(links=(Link("/l", "x"),), env=(EnvVar("A", "1"), EnvVar("A", "2")))
