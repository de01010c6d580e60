# SPDX-License-Identifier: Apache-2.0
"""The kubelet's checkpoint is read once a version, and no version is missed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devicemount_agent.allocation.kubelet import CHECKPOINT_NAME, Checkpoint
from devicemount_agent.errors import NodeUnavailable

MODIFIED_NS = 1_800_000_000_000_000_000


def place(directory: Path, pod_uid: str) -> None:
    """Rename a file over the old one, as the kubelet does; all are of one size and one time."""
    entry = {
        "PodUID": pod_uid,
        "ContainerName": "hold",
        "ResourceName": "example.com/gadget",
        "DeviceIDs": {"-1": ["g0"]},
        "AllocResp": None,
    }
    data = {"PodDeviceEntries": [entry], "RegisteredDevices": {"example.com/gadget": [pod_uid]}}
    new = directory / "new"
    new.write_text(json.dumps({"Data": data}))
    os.utime(new, ns=(MODIFIED_NS, MODIFIED_NS))
    new.rename(directory / CHECKPOINT_NAME)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Checkpoint]:
    bell = SimpleNamespace(hang=lambda *_, **__: None)
    opened = Checkpoint(tmp_path, cast(Any, bell))
    yield opened
    opened.close()


def test_a_version_is_read_once(tmp_path: Path, checkpoint: Checkpoint) -> None:
    place(tmp_path, "a")
    assert checkpoint.read() is checkpoint.read()
    assert checkpoint.registered() is checkpoint.registered()


def test_no_version_is_taken_for_another(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """A file system gives a new file the number of one that was removed."""
    for pod_uid in "abcdefgh":
        place(tmp_path, "x")
        place(tmp_path, pod_uid)
        (entry,) = checkpoint.read()
        assert entry.pod_uid == pod_uid
        assert checkpoint.registered() == {"example.com/gadget": {pod_uid}}


def test_there_may_be_none_yet_or_none_any_more(tmp_path: Path, checkpoint: Checkpoint) -> None:
    assert (checkpoint.read(), checkpoint.registered()) == ((), {})
    place(tmp_path, "a")
    assert checkpoint.read()
    (tmp_path / CHECKPOINT_NAME).unlink()
    assert (checkpoint.read(), checkpoint.registered()) == ((), {})


def test_one_part_of_an_unknown_shape_leaves_the_other(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    (tmp_path / CHECKPOINT_NAME).write_text('{"Data": {"PodDeviceEntries": []}}')
    assert checkpoint.read() == ()
    with pytest.raises(NodeUnavailable, match="no known shape"):
        checkpoint.registered()
