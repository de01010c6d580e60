# SPDX-License-Identifier: Apache-2.0
"""Who may open a file of this owner and mode."""

import stat

import pytest

from devicemount_agent.graft.permission import User, may_open, user_from
from devicemount_agent.kernel.files import FileFacts
from devicemount_agent.model import Access

RW = Access.READ | Access.WRITE


def file(mode: int, *, uid: int = 0, gid: int = 44) -> FileFacts:
    return FileFacts(
        mode=stat.S_IFCHR | mode,
        uid=uid,
        gid=gid,
        size_bytes=0,
        device=1,
        inode=1,
        number=1,
        mount_id=1,
        is_mount_root=False,
    )


def user(uid: int, *groups: int, overrides: bool = False) -> User:
    return User(uid, frozenset(groups), overrides)


@pytest.mark.parametrize(
    ("who", "what", "access", "may"),
    [
        pytest.param(user(1000, 1000), file(0o660), RW, False, id="others get nothing of 0660"),
        pytest.param(user(1000, 44), file(0o660), RW, True, id="the group gets it"),
        pytest.param(user(1000, 44), file(0o640), RW, False, id="the group may not write 0640"),
        pytest.param(user(1000, 44), file(0o640), Access.READ, True, id="but read it"),
        pytest.param(user(0, 0), file(0o660), RW, True, id="the owner gets it"),
        pytest.param(user(0, 44), file(0o060), RW, False, id="the first class that fits decides"),
        pytest.param(user(1000, 1000), file(0o666), RW, True, id="everybody gets 0666"),
        pytest.param(user(0, 0, overrides=True), file(0o000), RW, True, id="a capability decides"),
        pytest.param(user(1000), file(0o000), Access.NONE, True, id="nothing is asked for"),
    ],
)
def test_owner_and_mode_decide(who: User, what: FileFacts, access: Access, may: bool) -> None:  # noqa: FBT001
    assert may_open(who, what, access) is may


def test_a_process_opens_files_as_its_file_system_ids() -> None:
    status = {
        "Uid": "1\t2\t3\t4",
        "Gid": "5\t6\t7\t8",
        "Groups": "44 100 ",
        "CapEff": "0000000000000002",
    }
    assert user_from(status) == User(4, frozenset({8, 44, 100}), overrides=True)
    assert not user_from(status | {"CapEff": "000001ffffffffd5"}).overrides
