# SPDX-License-Identifier: Apache-2.0
"""A process that is ending may hide what it has for a moment: the search neither fails by it nor
takes one of a container that goes on hiding it for gone."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest

from devicemount_agent.holders import search
from devicemount_agent.model import ContainerID, DeviceNumber, PodUID

PID = 4242
OWNER = (PodUID("pod"), ContainerID("container"))
QUESTION = search.Question(
    numbers=frozenset({DeviceNumber("c", 7, 1)}),
    target=OWNER[0],
    shadow=PodUID("shadow"),
    granted=frozenset(),
    hold=Path("/hold"),
)

Says = Callable[..., object]


def says(*answers: object) -> Says:
    """Answer so in turn, the last again and again; an exception is raised."""
    turn = chain(answers, repeat(answers[-1]))

    def answer(*_: object, **__: object) -> object:
        said = next(turn)
        if isinstance(said, Exception):
            raise said
        return said

    return answer


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Says, Says], list[search.Found]]:
    def found(namespaces: Says, owner: Says) -> list[search.Found]:
        monkeypatch.setattr(search, "mount_namespaces", namespaces)
        monkeypatch.setattr(search, "owner_of", owner)
        return list(search.find(QUESTION, among=[PID]))

    return found


def test_one_that_was_ending_and_is_gone_has_nothing(
    process: Callable[[Says, Says], list[search.Found]],
) -> None:
    assert process(says(PermissionError()), says(ProcessLookupError())) == []


def test_one_of_a_container_is_looked_at_again(
    process: Callable[[Says, Says], list[search.Found]],
) -> None:
    assert process(says(PermissionError(), PermissionError(), {}), says(OWNER)) == []


def test_one_of_a_container_that_goes_on_hiding_is_not_passed_over(
    process: Callable[[Says, Says], list[search.Found]],
) -> None:
    with pytest.raises(PermissionError):
        process(says(PermissionError()), says(OWNER))


def test_what_the_kernel_has_stacked_on_a_block_device_blocks_and_is_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As device mapper does; a character device of the same number is another one."""
    monkeypatch.setattr(search, "BLOCK_DEVICES", tmp_path)
    (tmp_path / "7:1/holders/dm-0").mkdir(parents=True)
    (tmp_path / "7:2/holders").mkdir(parents=True)
    numbers = (DeviceNumber("b", 7, 1), DeviceNumber("b", 7, 2), DeviceNumber("c", 7, 1))
    told = [
        [(one.holder.command, one.holder.blocking, one.pid) for one in search.sightings(asked, [])]
        for asked in (replace(QUESTION, numbers=frozenset({number})) for number in numbers)
    ]
    assert told == [[("dm-0", True, 0)], [], []]


def test_one_of_the_node_may_hide(process: Callable[[Says, Says], list[search.Found]]) -> None:
    assert process(says(PermissionError()), says((None, None))) == []
