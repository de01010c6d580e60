# SPDX-License-Identifier: Apache-2.0
"""Who may open a file of this owner and mode."""

import stat

import pytest

from devicemount_agent.graft.permission import may_open
from devicemount_agent.graft.users import OF_NODE, IdMap, Ids, User
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
    return User(uid, uid, uid, frozenset(groups), overrides)


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
    assert may_open(who, what, access, ids=OF_NODE) is may


@pytest.mark.parametrize(
    ("uid", "gid", "may"),
    [(100000, 100044, True), (0, 100044, False), (100000, 44, False), (165535, 165535, True)],
    ids=["the container's own", "another owner", "another group", "the last of its ids"],
)
def test_in_a_user_namespace_a_capability_counts_for_its_own_ids(
    uid: int,
    gid: int,
    may: bool,  # noqa: FBT001
) -> None:
    ids = Ids(IdMap(((0, 100000, 65536),)), IdMap(((0, 100000, 65536),)))
    who = user(100007, 100007, overrides=True)
    assert may_open(who, file(0o600, uid=uid, gid=gid), RW, ids=ids) is may
