# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for MOFFETT's cards on a node of the testbed, and the shipped plugin that finds them.

Their device nodes have numbers that no driver has: to open one says ENXIO where it is allowed and
EPERM where it is not. Their sysfs is a directory that the plugin's pod gets in the place of /sys.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from cluster.checkpoint import checkpoint, healthy
from cluster.plugins import allocatable, running_plugin
from cluster.world import Pod
from devicemount_testbed.api import Api, Object
from devicemount_testbed.cluster import Testbed
from unit.plugin.node_tree import NodeTree

SPU = "moffett.ai/spu"
CONFIG = Path(__file__).parents[2] / "manifests/plugin-configs/moffett-spu/moffett-spu.yaml"
STAND_IN = "run/test-moffett"  # of the node: the cards' part of /sys
CARDS = 4
DRIVER = "spu"
STATE = "state"  # an attribute that tells of health: what the real driver has is not known
TOLERATION = {"key": SPU, "operator": "Exists", "effect": "NoSchedule"}


@dataclass(frozen=True)
class Cards:
    """The stand-ins of one node."""

    testbed: Testbed
    api: Api
    node: str
    major: int

    def id(self, index: int) -> str:
        """Return a card's PCI address, which is its device id."""
        return f"0000:3b:0{index}.0"

    def path(self, index: int) -> str:
        return f"/dev/test-spu{index}"

    def index(self, device_id: str) -> int:
        return [self.id(index) for index in range(CARDS)].index(device_id)

    @cached_property
    def _dev(self) -> NodeTree:
        return NodeTree(self.testbed.node_root(self.node))

    @cached_property
    def _sysfs(self) -> NodeTree:
        return NodeTree(self.testbed.node_root(self.node) / STAND_IN)

    def add(self, index: int) -> None:
        directory = self._sysfs.add_pci(self.id(index), "1f36:7030", driver=DRIVER)
        self._sysfs.put(f"/sys/devices/pci0000:00/{self.id(index)}/{STATE}", "ok")
        for minor in (index, index + 100):  # after a reset, another number
            self._sysfs.register(f"{self.major}:{minor}", directory, name=f"spu/{minor}")
        self.add_node(index, minor=index)

    def add_node(self, index: int, *, minor: int) -> None:
        self._dev.plug(self.path(index), f"{self.major}:{minor}")

    def remove_node(self, index: int) -> None:
        self._dev.unplug(self.path(index))

    def replace_node(self, index: int) -> None:
        """Let the card have the node that it had at first, whatever it has now."""
        (self._dev.root / self.path(index).removeprefix("/")).unlink(missing_ok=True)
        self.add_node(index, minor=index)

    @contextmanager
    def without_driver(self, index: int) -> Iterator[None]:
        (self._directory(index) / "driver").unlink()
        try:
            yield
        finally:
            self._sysfs.bind(self._directory(index), DRIVER)

    @contextmanager
    def with_state(self, index: int, text: str) -> Iterator[None]:
        file = self._directory(index) / STATE
        before = file.read_text()
        file.write_text(f"{text}\n")
        try:
            yield
        finally:
            file.write_text(before)

    def _directory(self, index: int) -> Path:
        return self._sysfs.root / "sys/devices/pci0000:00" / self.id(index)

    def clear(self) -> None:
        script = f"rm -rf /{STAND_IN} /dev/test-spu*"
        self.testbed.exec(self.node, ["sh", "-c", script])

    def openable(self, pod: Pod) -> set[int]:
        """Return which cards may be opened in the pod by number, wherever their files are."""
        script = "; ".join(
            f"[ -e /tmp/spu{minor} ] || mknod /tmp/spu{minor} c {self.major} {minor};"
            f" if : 2>&1 < /tmp/spu{minor} | grep -q 'No such device'; then echo {minor}; fi"
            for index in range(CARDS)
            for minor in (index, index + 100)
        )
        return {int(minor) for minor in pod.sh(script).split()}

    def allocatable(self) -> int:
        return allocatable(self.api, self.node, SPU)

    def shown(self) -> str:
        """Return how many of the node kubectl shows, asked as the pages ask it."""
        key = SPU.replace(".", r"\.")
        columns = f"custom-columns=SPUS:.status.allocatable.{key}"
        asked = ("get", "node", self.node, "--no-headers", "-o", columns)
        return self.testbed.kubectl(*asked).strip()

    def sockets(self) -> set[Path]:
        """Return the sockets at which the plugin serves the cards."""
        directory = checkpoint(self.testbed, self.node).parent
        return set(directory.glob(f"{SPU.replace('/', '_')}-*.sock"))

    def known(self) -> set[str]:
        """Return the ids of the cards that the kubelet may give away."""
        return healthy(self.testbed, self.node).get(SPU, set())


def free_major() -> int:
    """Return a major that a driver would be given and that none has."""
    lines = Path("/proc/devices").read_text().partition("Block devices:")[0].splitlines()
    taken = {int(line.split()[0]) for line in lines if line[:4].strip().isdecimal()}
    return max(set(range(234, 255)) - taken)


@contextmanager
def placed_cards(testbed: Testbed, api: Api, *, node: str) -> Iterator[Cards]:
    """Put the cards into a node, without a plugin; leave nothing of them."""
    cards = Cards(testbed, api, node, free_major())
    cards.clear()
    try:
        for index in range(CARDS):
            cards.add(index)
        yield cards
    finally:
        cards.clear()


@contextmanager
def tainted(testbed: Testbed, node: str) -> Iterator[None]:
    """Keep the node for those that tolerate the cards' taint, as the manual has it."""
    testbed.kubectl("taint", "node", node, f"{SPU}=:NoSchedule")
    try:
        yield
    finally:
        testbed.kubectl("taint", "node", node, f"{SPU}:NoSchedule-")


@contextmanager
def served_cards(testbed: Testbed, api: Api, *, node: str) -> Iterator[Cards]:
    """Put the cards into a node, taint it and run the shipped device plugin there."""
    config: Object = yaml.safe_load(CONFIG.read_text())
    config["resources"][0]["health"] = [{"attribute": STATE, "healthy": ["ok"]}]
    with (
        placed_cards(testbed, api, node=node) as cards,
        tainted(testbed, node),
        running_plugin(testbed, api, node=node, config=config, sys=f"/{STAND_IN}/sys"),
    ):
        yield cards
