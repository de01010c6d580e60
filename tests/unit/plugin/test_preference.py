# SPDX-License-Identifier: Apache-2.0
"""Which of the free devices a container should rather get."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devicemount_plugin.config import DeviceID
from devicemount_plugin.preference import prefer

NUMA = {"a": 0, "b": 0, "c": 1, "d": 1, "e": 1}


def preferred(available: str, *, size: int, must: str = "") -> str:
    def device_of(one: DeviceID) -> str:
        return one.partition("::")[0]

    chosen = prefer(
        [DeviceID(one) for one in available.split()],
        must_include=[DeviceID(one) for one in must.split()],
        size=size,
        device_of=device_of,
        numa_node_of=lambda one: NUMA.get(device_of(one)),
    )
    return " ".join(chosen)


@pytest.mark.parametrize(
    ("available", "size", "must", "expected"),
    [
        pytest.param("e d c b a", 2, "", "a b", id="the NUMA node that they fill"),
        pytest.param("a b c d e", 3, "", "c d e", id="the NUMA node that has room for all"),
        pytest.param("a b c d e", 2, "e", "e c", id="near what must be included"),
        pytest.param("d c a", 4, "", "a c d", id="what there is if there is too little"),
        pytest.param("a::0 a::1 b::0", 2, "", "a::0 b::0", id="different devices first"),
        pytest.param("a::0 b::0 b::1", 1, "", "b::0", id="the device with most free replicas"),
        pytest.param("x y", 1, "", "x", id="devices that no NUMA node has"),
        pytest.param("a b", 1, "b", "b", id="nothing more than must be included"),
    ],
)
def test_the_choice(*, available: str, size: int, must: str, expected: str) -> None:
    assert preferred(available, size=size, must=must) == expected


@given(
    available=st.sets(st.sampled_from([f"{d}::{n}" for d in "abcdex" for n in range(3)])),
    size=st.integers(min_value=0, max_value=20),
)
def test_a_choice_is_as_many_different_free_ids_as_there_are(
    available: set[str], size: int
) -> None:
    chosen = preferred(" ".join(sorted(available)), size=size).split()
    assert len(chosen) == len(set(chosen)) == min(size, len(available))
    assert set(chosen) <= available
