# SPDX-License-Identifier: Apache-2.0
"""How a watch that is deaf is told from one on which nothing happens."""

from typing import Any

from devicemount_operator.hearing import PATIENCE_S, Hearing
from devicemount_operator.packing import Packed
from devicemount_operator.reflector import Listed

LATER = PATIENCE_S + 1


def at(version: int, *, uid: str = "a") -> dict[str, Any]:
    return {"metadata": {"uid": uid, "resourceVersion": str(version)}}


def listed(*objects: dict[str, Any]) -> Listed:
    return Listed(tuple(map(Packed.of, objects)), "99")


def test_what_was_told_is_not_missed() -> None:
    hearing = Hearing()
    hearing.told(at(5))
    hearing.compare(listed(at(5)), now=0)
    assert hearing.missed(now=LATER) == 0


def test_a_version_that_is_not_told_for_long_was_missed() -> None:
    hearing = Hearing()
    hearing.told(at(5))
    hearing.compare(listed(at(6), at(7, uid="b")), now=0)
    assert hearing.missed(now=PATIENCE_S) == 0
    hearing.compare(listed(at(8), at(7, uid="b")), now=LATER - 1)
    assert hearing.missed(now=LATER) == 2


def test_one_that_is_told_late_was_not_missed() -> None:
    hearing = Hearing()
    hearing.compare(listed(at(6)), now=0)
    hearing.told(at(5))
    assert hearing.missed(now=LATER) == 1
    hearing.told(at(6))
    assert hearing.missed(now=LATER) == 0


def test_what_is_gone_is_not_waited_for() -> None:
    hearing = Hearing()
    hearing.compare(listed(at(6), at(7, uid="b")), now=0)
    hearing.gone("a")
    hearing.compare(listed(), now=1)
    assert hearing.missed(now=LATER) == 0
