# SPDX-License-Identifier: Apache-2.0
"""The kernel's own verdict on any device program with any list, against what it should be.

A request is allowed if the original allows it or one entry of the list has all of it. Devices of
majors that nobody has registered are asked for: open says ENXIO where the filter lets it through.
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devicemount_agent.graft import graft
from devicemount_agent.model import Access, DeviceNumber

from . import programs
from .containers import Box, Lab
from .programs import op

R, W, RW = Access.READ, Access.WRITE, Access.READ | Access.WRITE
FLAGS = {R: os.O_RDONLY, W: os.O_WRONLY, RW: os.O_RDWR}
BITS = {R: 2, W: 4, RW: 6}
NUMBERS = [
    DeviceNumber(kind, major, minor) for kind in "bc" for major in (60, 61) for minor in (0, 9)
]


@dataclass(frozen=True)
class Rule:
    """Compare, and answer if all is equal; None is whatever it is."""

    kind: str | None
    major: int | None
    minor: int | None
    access: Access
    allows: bool

    def fits(self, number: DeviceNumber, access: Access) -> bool:
        return (
            self.kind in (None, number.kind)
            and self.major in (None, number.major)
            and self.minor in (None, number.minor)
            and access in self.access
        )

    def code(self) -> bytes:
        """Answer as this rule says, or go on behind it."""
        answer = op(0xB7, imm=int(self.allows)) + op(0x95)
        wanted = {
            2: None if self.kind is None else programs.TYPES[self.kind],
            4: self.major,
            5: self.minor,
        }
        tests = [(register, value) for register, value in wanted.items() if value is not None]
        compares = b"".join(
            op(0x55, dst=register, imm=value, off=len(tests) - place + 1)
            for place, (register, value) in enumerate(tests)
        )
        beyond = len(compares + answer) // 8
        lacks = op(0xBC, dst=1, src=3) + op(0x54, dst=1, imm=BITS[self.access])
        return lacks + op(0x5D, dst=1, src=3, off=beyond) + compares + answer


@dataclass(frozen=True)
class Program:
    rules: tuple[Rule, ...]
    otherwise: bool

    def allows(self, number: DeviceNumber, access: Access) -> bool:
        fitting = (rule.allows for rule in self.rules if rule.fits(number, access))
        return next(fitting, self.otherwise)

    def code(self) -> bytes:
        rules = (rule.code() for rule in self.rules)
        return b"".join([programs.LOADS, *rules, op(0xB7, imm=int(self.otherwise)), op(0x95)])


accesses = st.sampled_from([R, W, RW])
numbers = st.sampled_from(NUMBERS)
rules = st.builds(
    Rule,
    kind=st.sampled_from([None, "b", "c"]),
    major=st.sampled_from([None, 60, 61]),
    minor=st.sampled_from([None, 0, 9]),
    access=accesses,
    allows=st.booleans(),
)
device_programs = st.builds(
    Program, rules=st.lists(rules, max_size=5).map(tuple), otherwise=st.booleans()
)
lists = st.dictionaries(numbers, accesses, max_size=4)


def agree(lab: Lab, *, examples: int) -> None:
    """Let the kernel judge every device by so many random programs, wrapped and as they were."""
    box = lab.container(restrict=lambda _: None)
    for number in NUMBERS:
        mode = 0o20666 if number.kind == "c" else 0o60666
        os.mknod(f"{box.root}{path(number)}", mode, os.makedev(number.major, number.minor))

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(program=device_programs, listed=lists)
    def run(program: Program, listed: dict[DeviceNumber, Access]) -> None:
        fd = programs.attach(box.cgroup.path, program.code(), name="original")
        try:
            before = programs.attached(box.cgroup.path)
            graft.permit(box, listed, earlier={})
            judge(box, program, listed)
            graft.permit(box, {}, earlier={})
            assert programs.attached(box.cgroup.path) == before
            judge(box, program, {})
        finally:
            programs.detach_all(box.cgroup.path)
            os.close(fd)

    run()


def judge(box: Box, program: Program, listed: Mapping[DeviceNumber, Access]) -> None:
    for number in NUMBERS:
        for access, flags in FLAGS.items():
            is_listed = access in listed.get(number, Access.NONE)
            expected = errno.ENXIO if is_listed or program.allows(number, access) else errno.EPERM
            assert answer(box, number, flags) == expected, (number, access)


def answer(box: Box, number: DeviceNumber, flags: int) -> int | None:
    try:
        box.inside.open(path(number), flags)
    except OSError as error:
        return error.errno
    return None


def path(number: DeviceNumber) -> str:
    return f"/dev/{number.kind}{number.major}-{number.minor}"
