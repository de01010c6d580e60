# SPDX-License-Identifier: Apache-2.0
"""What a prober's answers say about outages."""

import pytest

from cluster.probing import Opened, stretches
from cluster.storm import OPENED, REFUSED, Answers, outages_ms

MS = 1_000_000


@pytest.mark.parametrize(
    ("answers", "outages"),
    [
        pytest.param([(1, OPENED)], [], id="never refused"),
        pytest.param(
            [(1, OPENED), (5, OPENED), (6, REFUSED), (8, REFUSED), (9, OPENED)],
            [4.0],
            id="from the last open before to the first one after",
        ),
        pytest.param(
            [(1, OPENED), (5, OPENED), (95, REFUSED), (95, REFUSED), (96, OPENED)],
            [91.0],
            id="a prober that was late leaves nothing out",
        ),
        pytest.param([(5, OPENED), (6, REFUSED), (8, REFUSED)], [], id="one that lasts is none"),
        pytest.param([(5, REFUSED), (6, OPENED)], [], id="before the first open there is none"),
    ],
)
def test_an_outage_lies_between_two_opens(answers: Answers, outages: list[float]) -> None:
    assert outages_ms([(at * MS, error) for at, error in answers]) == outages


def test_a_stretch_begins_with_the_first_open_and_ends_with_the_first_refusal() -> None:
    said = ["1 /dev/a 2", "4 /dev/a 2", "5 /dev/a 0", "9 /dev/a 0", "10 /dev/a 1", "12 /dev/a 0"]
    assert stretches(said, node="n", tenant="t") == [
        Opened("n", "/dev/a", "t", 5, 10),
        Opened("n", "/dev/a", "t", 12, None),
    ]
