# SPDX-License-Identifier: Apache-2.0
"""Device permission on cgroup v1: exactly the difference to what was there before.

The kernel counts nothing: an entry allowed twice is gone after one deny. It lets one entry decide a
request, so "r" by one and "w" by another do not make "rw": a grant always adds the whole access as
an entry of its own number, and what to leave behind is what that very entry had before. Allowing
does not reach descendants, denying does. A cgroup that allows all ("a *:* rwm") is never written
to: a deny would take the device from a privileged container, and no list would show it.
"""

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.container.cgroup import Cgroup, CgroupVersion
from devicemount_agent.errors import FilterBlocked
from devicemount_agent.graft.standing import RULES_BYTES, Standing
from devicemount_agent.graft.target import below
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import Access, DeviceNumber

ALL = Access.READ | Access.WRITE


@dataclass(frozen=True, slots=True)
class Rules:
    """devices.list of one cgroup, as far as reading and writing go."""

    allows_all: bool
    entries: Mapping[tuple[str, str, str], Access]  # ("c", "7", "*"): what that entry allows

    def entry(self, number: DeviceNumber) -> Access:
        """Return what the entry of exactly this number allows."""
        if self.allows_all:
            return ALL
        key = (number.kind, str(number.major), str(number.minor))
        return self.entries.get(key, Access.NONE)

    def allows(self, number: DeviceNumber, access: Access) -> bool:
        """Say whether one entry, wildcards included, allows all of the access."""
        major, minor = str(number.major), str(number.minor)
        keys = ((number.kind, a, i) for a in (major, "*") for i in (minor, "*"))
        return self.allows_all or any(access in self.entries.get(k, Access.NONE) for k in keys)

    def numbers(self) -> frozenset[DeviceNumber]:
        """Return the numbers that have an entry of their own; none where all is allowed."""
        return frozenset(
            DeviceNumber(kind, int(major), int(minor))
            for (kind, major, minor), access in self.entries.items()
            if access and "*" not in (major, minor)
        )


@dataclass(frozen=True, slots=True)
class Change:
    """What to write for one number: first denied, then allowed."""

    number: DeviceNumber
    deny: Access
    allow: Access


def parse(text: str) -> Rules:
    """Read devices.list: "a *:* rwm" or lines like "c 10:229 rw"."""
    entries: dict[tuple[str, str, str], Access] = {}
    for line in text.splitlines():
        kind, device, permissions = line.split()
        if kind == "a":
            return Rules(allows_all=True, entries={})
        major, minor = device.split(":")
        access = Access.READ if "r" in permissions else Access.NONE
        access |= Access.WRITE if "w" in permissions else Access.NONE
        entries[kind, major, minor] = entries.get((kind, major, minor), Access.NONE) | access
    return Rules(allows_all=False, entries=entries)


def changes(
    rules: Rules, want: Mapping[DeviceNumber, Access], *, earlier: Mapping[DeviceNumber, Access]
) -> tuple[Change, ...]:
    """Compute what of `want` is missing, and what is there that nobody wants any more."""
    if rules.allows_all:
        return ()
    found = []
    for number in sorted(want.keys() | earlier.keys()):
        present, wanted = rules.entry(number), want.get(number, Access.NONE)
        left = wanted | earlier.get(number, Access.NONE)
        found.append(Change(number=number, deny=present & ~left, allow=wanted & ~present))
    return tuple(change for change in found if change.deny or change.allow)


def read(cgroup: Path) -> Rules:
    """Raises FileNotFoundError when the cgroup is gone."""
    return parse(_text(cgroup).decode())


def apply(
    cgroup: Cgroup, want: Mapping[DeviceNumber, Access], *, earlier: Mapping[DeviceNumber, Access]
) -> Standing:
    """Make the permissions of a container's cgroup and those below it what is wanted. Idempotent.

    `earlier` holds every number that was ever granted here, with what its entry allowed before. A
    cgroup that is made below later starts with the rules of the one above it. Raises FilterBlocked
    when an ancestor denies, FileNotFoundError when the cgroup is gone.
    """
    rules = read(cgroup.path)
    due = changes(rules, want, earlier=earlier)
    for change in due:
        if change.deny:
            _write(cgroup.path / "devices.deny", change.number, change.deny)
    if want and not rules.allows_all:
        _allow(cgroup, cgroup.path, want)
        for level in below(cgroup.path):
            with suppress(FileNotFoundError):  # it ended meanwhile
                _allow(cgroup, level, want)
    text = _text(cgroup.path)
    if changes(parse(text.decode()), want, earlier=earlier):
        raise OSError(errno.EAGAIN, "device rules were changed meanwhile", str(cgroup.path))
    return Standing(
        version=CgroupVersion.V1,
        top=cgroup.path,
        leaf=cgroup.path,
        rules=text[:RULES_BYTES],
        was_made=bool(due),
    )


def denying_ancestor(cgroup: Cgroup, number: DeviceNumber, access: Access) -> Path | None:
    """Return the topmost ancestor whose rules do not allow it."""
    ancestors = [path for path in cgroup.path.parents if path.is_relative_to(cgroup.hierarchy)]
    denying = (path for path in reversed(ancestors) if not read(path).allows(number, access))
    return next(denying, None)


def _allow(cgroup: Cgroup, level: Path, want: Mapping[DeviceNumber, Access]) -> None:
    for change in changes(read(level), want, earlier={}):
        if not change.allow:
            continue
        try:
            _write(level / "devices.allow", change.number, change.allow)
        except PermissionError as error:
            ancestor = denying_ancestor(cgroup, change.number, change.allow) or level.parent
            raise FilterBlocked(
                f"cgroup {ancestor} denies {_rule(change.number, change.allow)}"
            ) from error


def _text(cgroup: Path) -> bytes:
    return (cgroup / "devices.list").read_bytes()


def _write(path: Path, number: DeviceNumber, access: Access) -> None:
    """Write with write(2) itself: a file object hides a refusal until it is closed."""
    with closing(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) as fd:
        os.write(fd, _rule(number, access).encode())


def _rule(number: DeviceNumber, access: Access) -> str:
    return f"{number.kind} {number.major}:{number.minor} {access}"
