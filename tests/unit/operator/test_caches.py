# SPDX-License-Identifier: Apache-2.0
"""What wakes a mount, and what is taken in silently."""

from typing import Any

import pytest

from devicemount_operator.caches import Mounts, Shadows
from devicemount_operator.reflector import Listed
from devicemount_operator.transport import JsonObject

MOUNT = "0a0a0a0a-0000-0000-0000-000000000001"
POD = "0b0b0b0b-0000-0000-0000-000000000001"


def mount(version: int, **meta: Any) -> JsonObject:
    return {
        "metadata": {
            "name": "dm",
            "namespace": "team-a",
            "uid": MOUNT,
            "generation": 1,
            "resourceVersion": str(version),
            "managedFields": [{"manager": "kubectl"}],
            **meta,
        },
        "spec": {"target": {"podName": "notebook-0"}, "resources": {"limits": {"x.io/y": 1}}},
    }


def shadow(version: int, *, uid: str = POD, status: JsonObject | None = None) -> JsonObject:
    return {
        "metadata": {
            "name": "dm-0a0a0a0a-0c0c0c0c-0",
            "namespace": "team-a",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {"devicemount.io/shadow": MOUNT},
        },
        "spec": {"nodeName": "node1", "containers": [{"name": "hold", "image": "hold:1"}]},
        "status": status or {},
    }


def test_a_mount_is_news_once() -> None:
    mounts = Mounts()
    assert mounts.put(mount(5), now=1.0)
    assert not mounts.put(mount(5), now=2.0)
    known = mounts.get(MOUNT)
    assert known is not None
    assert known.seen == 1.0
    assert known.raw["metadata"]["managedFields"] is None


@pytest.mark.parametrize(
    ("meta", "news"),
    [
        ({"generation": 2}, True),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/y"]}, True),
        ({"finalizers": ["devicemount.io/finalizer"]}, True),
        ({"annotations": {"touched": "yes"}}, False),
        ({}, False),
    ],
    ids=["spec changed", "is being deleted", "finalizers changed", "annotated", "status written"],
)
def test_only_what_decisions_read_wakes_a_mount(meta: dict[str, Any], news: bool) -> None:  # noqa: FBT001
    mounts = Mounts()
    mounts.put(mount(5), now=1.0)
    assert mounts.put(mount(6, **meta), now=2.0) is news


def test_a_mount_that_is_deleted_and_has_no_finalizer_is_gone() -> None:
    mounts = Mounts()
    mounts.put(mount(5, finalizers=["x.io/y"]), now=1.0)
    assert mounts.put(mount(6, deletionTimestamp="2026-01-01T00:00:00Z"), now=2.0)
    assert mounts.get(MOUNT) is None


def test_a_mount_is_gone_once_our_finalizer_is_off_though_its_version_stays() -> None:
    deleted, mounts = {"deletionTimestamp": "2026-01-01T00:00:00Z"}, Mounts()
    as_told = mount(6, finalizers=["x.io/y"], **deleted)
    mounts.put(as_told, now=1.0)
    mounts.put(mount(6, **deleted), now=2.0)
    assert mounts.get(MOUNT) is None
    assert not mounts.put(as_told, now=3.0)
    assert mounts.get(MOUNT) is None


def test_an_event_older_than_our_own_write_changes_nothing() -> None:
    mounts = Mounts()
    mounts.put(mount(9, finalizers=["devicemount.io/finalizer"]), now=1.0)
    assert not mounts.put(mount(8, finalizers=[]), now=2.0)
    known = mounts.get(MOUNT)
    assert known is not None
    assert known.model.metadata.finalizers == ("devicemount.io/finalizer",)


def test_what_a_list_lacks_is_gone_unless_it_is_newer_than_the_list() -> None:
    mounts = Mounts()
    mounts.put(mount(9), now=1.0)
    assert mounts.replace_all(Listed((), version="8"), now=2.0) == ()
    assert mounts.replace_all(Listed((), version="9"), now=2.0) == (MOUNT,)
    assert mounts.get(MOUNT) is None


def test_an_object_that_cannot_be_read_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    mounts = Mounts()
    unreadable = mount(5)
    unreadable["spec"] = {"of": "the future"}
    assert not mounts.put(unreadable, now=1.0)
    assert "cannot read a DeviceMount" in caplog.text


def test_a_heartbeat_of_the_kubelet_wakes_nobody_and_a_failure_does() -> None:
    shadows = Shadows()
    assert shadows.put(shadow(1), now=1.0) == MOUNT
    ready = {"type": "Ready", "status": "True", "message": "at last"}
    assert shadows.put(shadow(2, status={"conditions": [ready]}), now=2.0) is None
    assert shadows.put(shadow(3, status={"phase": "Failed"}), now=3.0) == MOUNT


def test_how_long_hold_has_not_run_is_counted_from_the_first_sight() -> None:
    shadows = Shadows()
    running = {"containerStatuses": [{"name": "hold", "state": {"running": {}}}]}
    shadows.put(shadow(1), now=1.0)
    shadows.put(shadow(2, status={"phase": "Pending"}), now=2.0)
    assert [pod.hold_down_since for pod in shadows.of(MOUNT)] == [1.0]
    shadows.put(shadow(3, status=running), now=3.0)
    assert [pod.hold_down_since for pod in shadows.of(MOUNT)] == [None]
    shadows.put(shadow(4), now=4.0)
    assert [pod.hold_down_since for pod in shadows.of(MOUNT)] == [4.0]


def test_what_the_watch_still_says_of_a_pod_that_we_deleted_is_the_past() -> None:
    shadows = Shadows()
    shadows.put(shadow(1), now=1.0)
    shadows.delete(shadows.of(MOUNT)[0])
    assert shadows.put(shadow(2, status={"phase": "Failed"}), now=2.0) is None
    assert shadows.of(MOUNT) == ()
    assert shadows.gone(shadow(3)) is None
    assert shadows.mounts() == ()


def test_a_pod_that_goes_by_another_hand_wakes_its_mount() -> None:
    shadows = Shadows()
    shadows.put(shadow(1), now=1.0)
    assert shadows.gone(shadow(2)) == MOUNT


def test_a_list_that_began_before_our_post_does_not_take_the_pod_away() -> None:
    shadows = Shadows()
    shadows.put(shadow(7), now=1.0)
    assert shadows.replace_all(Listed((), version="6"), now=2.0) == ()
    assert len(shadows.of(MOUNT)) == 1
    assert shadows.replace_all(Listed((), version="8"), now=2.0) == (MOUNT,)


def test_a_pod_that_was_made_again_is_another_one() -> None:
    shadows = Shadows()
    shadows.put(shadow(1), now=1.0)
    assert shadows.put(shadow(5, uid="another"), now=2.0) == MOUNT
    assert shadows.gone(shadow(4)) == MOUNT
    assert [pod.uid for pod in shadows.of(MOUNT)] == ["another"]


def test_what_comes_late_brings_back_nothing_that_is_gone() -> None:
    mounts, shadows = Mounts(), Shadows()
    mounts.put(mount(5), now=1.0)
    mounts.gone(MOUNT, version=7)
    shadows.put(shadow(5), now=1.0)
    shadows.gone(shadow(7))
    assert not mounts.put(mount(6), now=2.0)
    assert mounts.get(MOUNT) is None
    assert shadows.put(shadow(6), now=2.0) is None
    assert shadows.of(MOUNT) == ()


def test_a_shadow_pod_that_had_lost_its_label_is_known_again() -> None:
    shadows = Shadows()
    shadows.put(shadow(5), now=1.0)
    shadows.gone(shadow(7))
    assert shadows.put(shadow(8), now=2.0) == MOUNT


def test_what_a_list_did_not_show_is_not_brought_back_by_an_event_from_before_it() -> None:
    mounts = Mounts()
    mounts.put(mount(5), now=1.0)
    assert mounts.replace_all(Listed((), "9"), now=2.0) == (MOUNT,)
    assert not mounts.put(mount(8), now=3.0)
