# SPDX-License-Identifier: Apache-2.0
"""Ids of a container are others on the node."""

import pytest

from devicemount_agent.graft.users import OF_NODE, Ids, User, id_map, user_from

STATUS = {
    "Uid": "1\t2\t3\t4",
    "Gid": "5\t6\t7\t8",
    "Groups": "44 100 ",
    "CapEff": "0000000000000002",
}


def test_a_process_opens_files_as_its_file_system_ids() -> None:
    assert user_from(STATUS) == User(1, 5, 4, frozenset({8, 44, 100}), overrides=True)
    assert not user_from(STATUS | {"CapEff": "000001ffffffffd5"}).overrides


@pytest.mark.parametrize(
    ("inside", "outside"),
    [(0, 100000), (65535, 165535), (65536, None), (70000, 7), (70001, None)],
)
def test_an_id_is_looked_up_in_its_range(inside: int, outside: int | None) -> None:
    ids = id_map(["         0     100000      65536", "     70000          7          1"])
    assert ids.on_node(inside) == outside
    assert outside is None or ids.has(outside)
    assert not ids.has(0)


def test_root_without_a_number_on_the_node_is_the_nodes_own() -> None:
    no_root = id_map(["1 100000 10"])
    assert Ids(no_root, no_root).root() == (0, 0)
    assert OF_NODE.root() == (0, 0)
