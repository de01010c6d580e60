# SPDX-License-Identifier: Apache-2.0
"""cgroup v1: the difference between what is there, what is wanted and what was there before."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devicemount_agent.graft.filter_v1 import ALL, Change, Rules, changes, parse
from devicemount_agent.model import Access, DeviceNumber

VCS1 = DeviceNumber("c", 7, 1)
R, W = Access.READ, Access.WRITE

numbers = st.builds(
    DeviceNumber,
    kind=st.sampled_from(["b", "c"]),
    major=st.just(7),
    minor=st.integers(0, 2),
)
accesses = st.sampled_from([R, W, ALL])
grants = st.dictionaries(numbers, accesses, max_size=4)
lists = st.lists(
    st.builds(
        "{} {}:{} {}".format,
        st.sampled_from(["b", "c"]),
        st.sampled_from(["7", "*"]),
        st.sampled_from(["0", "1", "2", "*"]),
        st.sampled_from(["m", "r", "rm", "w", "rw", "rwm"]),
    ),
    max_size=6,
).map("\n".join)


def after(rules: Rules, due: tuple[Change, ...]) -> Rules:
    """Do what the kernel does with the writes: entries of exactly these numbers change."""
    entries = dict(rules.entries)
    for change in due:
        key = (change.number.kind, str(change.number.major), str(change.number.minor))
        entries[key] = entries.get(key, Access.NONE) & ~change.deny | change.allow
    return replace(rules, entries=entries)


def without_empty(rules: Rules) -> dict[tuple[str, str, str], Access]:
    return {key: access for key, access in rules.entries.items() if access}


@given(text=lists, first=grants, second=grants)
def test_any_two_grants_and_a_revoke_leave_what_was_there(
    text: str, first: dict[DeviceNumber, Access], second: dict[DeviceNumber, Access]
) -> None:
    before = parse(text)
    earlier = {number: before.entry(number) for number in first.keys() | second.keys()}
    rules = before
    for want in (first, second, {}):
        rules = after(rules, changes(rules, want, earlier=earlier))
        assert all(rules.allows(number, access) for number, access in want.items())
        assert changes(rules, want, earlier=earlier) == ()
    assert without_empty(rules) == without_empty(before)


@given(text=lists, want=grants)
def test_what_is_neither_wanted_nor_ever_granted_is_not_written(
    text: str, want: dict[DeviceNumber, Access]
) -> None:
    rules = parse(text)
    due = changes(rules, want, earlier={number: rules.entry(number) for number in want})
    assert {change.number for change in due} <= want.keys()
    assert all(change.deny is Access.NONE for change in due)


@pytest.mark.parametrize(
    ("present", "want", "earlier", "deny", "allow"),
    [
        pytest.param("", ALL, Access.NONE, Access.NONE, ALL, id="all of it is missing"),
        pytest.param("r", ALL, R, Access.NONE, W, id="only what is missing is allowed"),
        pytest.param("rw", Access.NONE, R, W, Access.NONE, id="only what we gave is denied"),
        pytest.param("rw", R, Access.NONE, W, Access.NONE, id="a narrower grant"),
        pytest.param("", Access.NONE, ALL, Access.NONE, Access.NONE, id="others took it away"),
        pytest.param("rw", Access.NONE, ALL, Access.NONE, Access.NONE, id="it had all before"),
    ],
)
def test_the_difference_is_exact(
    present: str, want: Access, earlier: Access, deny: Access, allow: Access
) -> None:
    rules = parse(f"c 7:1 {present}m")
    due = changes(rules, {VCS1: want} if want else {}, earlier={VCS1: earlier})
    expected = (Change(number=VCS1, deny=deny, allow=allow),) if deny or allow else ()
    assert due == expected


def test_a_list_that_allows_all_is_never_written_to() -> None:
    rules = parse("a *:* rwm\n")
    assert rules.allows_all
    assert rules.entry(VCS1) == ALL
    assert changes(rules, {VCS1: ALL}, earlier={}) == ()
    assert changes(rules, {}, earlier={VCS1: Access.NONE}) == ()


def test_two_entries_do_not_add_up_for_one_request() -> None:
    rules = parse("c 7:1 r\nc 7:* w")
    assert rules.allows(VCS1, R)
    assert rules.allows(VCS1, W)
    assert not rules.allows(VCS1, ALL)
    due = changes(rules, {VCS1: ALL}, earlier={VCS1: R})
    assert due == (Change(number=VCS1, deny=Access.NONE, allow=W),)
