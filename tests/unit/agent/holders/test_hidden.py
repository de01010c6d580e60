# SPDX-License-Identifier: Apache-2.0
"""What a ring of io_uring may keep open, by what kernels since 5.7 say of it."""

import os
from pathlib import Path

import pytest

from devicemount_agent.holders import hidden as module
from devicemount_agent.holders.hidden import IN_FLIGHT, REGISTERED, REQUESTED, hidden

BY_PATH, BY_NAME = "6.14.0-27-generic", "6.12.43+deb13-amd64"
HEADER = "pos:\t0\nflags:\t02000002\nSqMask:\t0x7\nCQEs:\t0\n    0: user_data:1, res:0, flag:0\n"
TCP = "pos:\t0\nflags:\t02\nmnt_id:\t9\nino:\t7\n"
UNIX, CARRIER = f"{TCP}scm_fds: 0\n", f"{TCP}scm_fds: 1\n"


def ring(*files: str, count: int | None = None, requests: tuple[int, ...] = ()) -> str:
    listed = "".join(f"{n:5}: {name}\n" for n, name in enumerate(files))
    armed = "".join(f"  op={number}, task_works=0\n" for number in requests)
    return (
        f"{HEADER}UserFiles:\t{len(files) if count is None else count}\n{listed}UserBufs:\t0\n"
        f"PollList:\n{armed}CqOverflowList:\n  user_data=1, res=-9, flags=0\n"
    )


@pytest.mark.parametrize(
    ("descriptors", "said"),
    [
        pytest.param([ring()], "", id="a ring without files or requests has nothing"),
        pytest.param([f"{HEADER}SqThread:\t-1\n"], REGISTERED, id="one at work does not say"),
        pytest.param([f"{HEADER}UserFiles:\t0\n"], REGISTERED, id="nor does one say half"),
        pytest.param([ring(count=4)], REGISTERED, id="nor one that only counts"),
        pytest.param([ring("/dev/vcsa")], REGISTERED, id="a registered file may be the device"),
        pytest.param([ring("<none>", "pipe:[5]", "anon_inode:[eventfd]")], "", id="these are none"),
        pytest.param([ring("socket:[7]")], REGISTERED, id="a socket without a descriptor carries"),
        pytest.param([ring("socket:[6]"), TCP], "", id="one of the network does not"),
        pytest.param([UNIX, ring("socket:[6]", "socket:[5]")], REGISTERED, id="others say nothing"),
        pytest.param([UNIX, ring("socket:[5]"), ring("socket:[5]")], "", id="one says so for all"),
        pytest.param([ring(), CARRIER], IN_FLIGHT, id="what a socket carries is in flight"),
        pytest.param([ring(requests=(6,))], REQUESTED, id="poll may be of the device"),
        pytest.param([ring(requests=(27, 49, 13))], REQUESTED, id="read_multishot among others"),
        pytest.param([ring("pipe:[5]", requests=(22,))], REQUESTED, id="read beside files"),
        pytest.param([ring(requests=(10, 13, 16, 27, 58))], "", id="a server waits"),
        pytest.param(
            [ring(requests=(26,))], REQUESTED, id="to send waits beside what was received"
        ),
        pytest.param([ring(requests=(99,))], REQUESTED, id="a request that is not known"),
    ],
)
def test_by_what_it_may_have_any_file(
    descriptors: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sockets are numbered as they are listed, from 5."""
    show(descriptors, tmp_path, monkeypatch, release=BY_PATH)
    assert hidden(1) == said


@pytest.mark.parametrize(
    ("descriptors", "said"),
    [
        pytest.param([ring("pipe:[5]")], REGISTERED, id="a device may be renamed to a pipe"),
        pytest.param([ring("<none>")], REGISTERED, id="or to nothing"),
        pytest.param([UNIX, ring("socket:[5]")], REGISTERED, id="or to a socket"),
        pytest.param([ring("x\nPollList:")], REGISTERED, id="or to other lines"),
        pytest.param([ring()], "", id="where there is no file there is no name"),
        pytest.param([ring(requests=(6,))], REQUESTED, id="requests are numbered as ever"),
    ],
)
def test_a_kernel_that_tells_the_last_name_only_is_not_believed(
    descriptors: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(descriptors, tmp_path, monkeypatch, release=BY_NAME)
    assert hidden(1) == said


def show(
    descriptors: list[str], table: Path, monkeypatch: pytest.MonkeyPatch, *, release: str
) -> None:
    (table / "fd").mkdir()
    (table / "fdinfo").mkdir()
    for number, info in enumerate(descriptors, start=5):
        link = "anon_inode:[io_uring]" if info.startswith(HEADER) else f"socket:[{number}]"
        (table / "fd" / str(number)).symlink_to(link)
        (table / "fdinfo" / str(number)).write_text(info)
    monkeypatch.setattr(module, "tables", lambda _: [str(table)])
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", release, "", "")))
