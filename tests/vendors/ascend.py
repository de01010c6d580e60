# SPDX-License-Identifier: Apache-2.0
"""A machine with eight Huawei Ascend cards, and its device plugin in either of two modes.

The machine is that of tests/data/vendor-answers/runtime-resolution.json.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from devicemount_testbed.cluster import Testbed
from vendor_answers import MAIN, Case, resolution
from vendors.answers import case
from vendors.node import lay_out, node_files
from vendors.plugin import StandIn, answering, await_known, registered

CARD = "huawei.com/Ascend910"
RUNTIME_MODE, DEVICE_MODE = "ascend-envvar", "ascend-devicespec"


@dataclass(frozen=True)
class Ascend:
    """The stand-in of one node."""

    testbed: Testbed
    node: str
    cards: StandIn

    def answers(self, file: str, name: str = MAIN) -> Case:
        """Let the plugin have this case's cards from now on, and answer what it says."""
        chosen = case(file, name)
        assert chosen.entries[0].resource == CARD, chosen
        self.cards.offer(chosen.entries[0].ids, answering(chosen.entries[0], _marks(chosen)))
        await_known(self.testbed, self.node, self.cards)
        return chosen


@contextmanager
def ascend(testbed: Testbed, node: str, file: str = RUNTIME_MODE) -> Iterator[Ascend]:
    """Make the node such a machine; its plugin offers the two cards of the file's main case."""
    chosen = case(file)
    cards = StandIn(CARD, chosen.entries[0].ids, answering(chosen.entries[0], _marks(chosen)))
    with node_files(testbed, node) as files:
        lay_out(files, resolution()["ascend"]["fake_root"])
        with registered(testbed, node, cards):
            yield Ascend(testbed, node, cards)


def _marks(chosen: Case) -> dict[str, tuple[str, ...]]:
    """Return by which words a card is known in the plugin's answers: Ascend910-4, davinci4, 4."""
    numbers = {one: one.rpartition("-")[2] for one in chosen.entries[0].ids}
    return {one: (number, f"davinci{number}") for one, number in numbers.items()}
