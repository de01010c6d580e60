# SPDX-License-Identifier: Apache-2.0
"""Resolver `ascend`: Huawei's names of cards to nodes, as its container runtime makes them.

Source: Ascend/mind-cluster component/ascend-docker-runtime/runtime/process (parseDevices,
addDevice, addManagerDevice). A card's number is in its id and in its node's name. Virtual cards
(vNPU) are made and destroyed with the container that was allocated them, so they are refused.
"""

import re
from collections.abc import Iterable, Iterator

from devicemount_agent.allocation.grafted import named, node_of
from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.resolver import Resolved
from devicemount_agent.allocation.said import NO_EDITS, Subject
from devicemount_agent.errors import AllocationUnknown
from devicemount_agent.model import Access, DeviceNode, Edits
from devicemount_agent.profiles.profile import Named

VISIBLE = "ASCEND_VISIBLE_DEVICES"
CARDS_LIMIT = 1024
RW = Access.READ | Access.WRITE

_CARD = re.compile(r"(?:[A-Za-z][A-Za-z0-9]*-)?([0-9]{1,4})")  # 4, Ascend910-4
_RANGE = re.compile(r"([0-9]{1,4})-([0-9]{1,4})")
_ID = re.compile(
    r"[A-Za-z][A-Za-z0-9]*-([0-9]{1,4})(?:-[0-9]{1,4})?"
)  # Ascend910-4, a share: ...-0-99
_NODE = re.compile(r"/dev/davinci[0-9]+")
_IS_310B = re.compile(r"huawei\.com/Ascend310B")

SHARED = ("davinci_manager", "devmm_svm", "hisi_hdc")
OPTIONAL = ("dvpp_cmdlist",)
SHARED_310B = (  # those that exist, and the manager under another name on the node
    "dvpp_cmdlist",
    "svm0",
    "ts_aisle",
    "upgrade",
    "sys",
    "vdec",
    "vpc",
    "pngd",
    "venc",
    "log_drv",
    "acodec",
    "ai",
    "ao",
    "vo",
    "hdmi",
)
MANAGER_310B = "davinci_manager_docker"


class Ascend:
    """The cards of this node."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def names(self, subject: Subject, by: Named) -> tuple[str, ...]:
        if by == "ids":
            return tuple(_card_of(id_) for id_ in sorted(subject.ids))
        value = subject.answer.envs.get(VISIBLE, "")
        if value in {"", "void"}:
            return ()
        return tuple(card for part in value.split(",") for card in _cards_in(part))

    def resolve(self, subject: Subject, names: Iterable[str]) -> Resolved:
        cards = sorted({int(name) for name in names})
        if len(cards) > CARDS_LIMIT:
            raise AllocationUnknown(f"{subject.resource}: more than {CARDS_LIMIT} cards")
        own = tuple(self._node(subject, f"davinci{card}") for card in cards)
        is_310b = _IS_310B.match(subject.resource)
        shared = self._shared_310b(subject) if is_310b else self._shared(subject)
        return Resolved(own, tuple(shared))

    def always(self) -> Edits:
        return NO_EDITS

    def count(self, nodes: Iterable[DeviceNode]) -> int:
        return len({n.host_path for n in nodes if _NODE.fullmatch(n.host_path)})

    def _shared(self, subject: Subject) -> Iterator[DeviceNode]:
        for name in SHARED:
            yield self._node(subject, name)
        for name in OPTIONAL:
            if self._host.exists(f"/dev/{name}"):
                yield self._node(subject, name)

    def _shared_310b(self, subject: Subject) -> Iterator[DeviceNode]:
        has_own = self._host.exists(f"/dev/{MANAGER_310B}")
        yield self._node(subject, "davinci_manager", MANAGER_310B if has_own else None)
        for name in SHARED_310B:
            if self._host.exists(f"/dev/{name}"):
                yield self._node(subject, name)

    def _node(self, subject: Subject, name: str, on_node: str | None = None) -> DeviceNode:
        with named():
            found = self._host.find(f"/dev/{on_node or name}")
        return node_of(subject.profile, found, path=f"/dev/{name}", access=RW)


def _card_of(id_: str) -> str:
    """Return the card's number in an id of the kubelet."""
    if match := _ID.fullmatch(id_):
        return match[1]
    raise AllocationUnknown(f"{id_[:80]!r} is no id that Huawei's device plugin gives a whole card")


def _cards_in(part: str) -> Iterator[str]:
    """Yield the cards that one part of the variable names."""
    if match := _RANGE.fullmatch(part):
        first, last = int(match[1]), int(match[2])
        yield from map(str, range(first, min(last, first + CARDS_LIMIT) + 1))
    elif match := _CARD.fullmatch(part):
        yield match[1]
    else:
        raise AllocationUnknown(f"{VISIBLE} names {part[:80]!r}, which is no card")
