# SPDX-License-Identifier: Apache-2.0
"""The testbed's own network: one namespace for the control plane, one for each node, a bridge.

Nothing of it touches the machine's own namespace: both ends of every veth pair are made
inside. A namespace is a name below /run/netns, as `ip netns` has it, but made by `unshare`:
`ip netns add` and pyroute2 would leave /run/netns mounted on itself for ever.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyroute2

from devicemount_testbed.commands import output_of
from devicemount_testbed.errors import ForeignTestbed
from devicemount_testbed.preflight import read_mounts
from devicemount_testbed.topology import (
    BRIDGE,
    CONTROL_ADDRESS,
    CONTROL_NETNS,
    NODES,
    PREFIX_LENGTH,
    Node,
    netns_names,
)

NETNS_DIR = Path("/run/netns")
NODE_LINK = "eth0"


class Netlink(Protocol):
    """What we use of pyroute2's IPRoute, whose methods are made at run time."""

    def link(self, command: str, **fields: object) -> object: ...
    def addr(self, command: str, **fields: object) -> object: ...
    def route(self, command: str, **fields: object) -> object: ...
    def link_lookup(self, *, ifname: str) -> list[int]: ...


def entering(netns: str, argv: list[str]) -> list[str]:
    """Prefix a command so that it runs in the namespace.

    `nsenter --net` and not `ip netns exec`: that one mounts /sys anew and hides the cgroups.
    """
    return ["nsenter", f"--net={NETNS_DIR / netns}", "--", *argv]


def make_network() -> None:
    """Make everything; names that exist already are another testbed's (see refuse_leftovers)."""
    NETNS_DIR.mkdir(exist_ok=True)
    for name in netns_names():
        (NETNS_DIR / name).touch()
        output_of(["unshare", f"--net={NETNS_DIR / name}", "true"])
    with _netlink(CONTROL_NETNS) as control:
        _make_bridge(control)
        for node in NODES:
            _attach(control, node)
    for node in NODES:
        _configure(node)


def refuse_leftovers() -> None:
    """Raise ForeignTestbed for namespaces that no record of ours names."""
    if found := [name for name in netns_names() if (NETNS_DIR / name).exists()]:
        raise ForeignTestbed(found)


def remove_network(names: tuple[str, ...]) -> None:
    """Remove the namespaces; links, addresses and routes go with them."""
    for path in (NETNS_DIR / name for name in names):
        if f" {path} " in read_mounts():
            output_of(["umount", "--lazy", str(path)])
        path.unlink(missing_ok=True)


def set_link(node: Node, state: str) -> None:
    """Take the node's cable out ("down"), or put it in ("up")."""
    with _netlink(CONTROL_NETNS) as control:
        control.link("set", index=_index(control, node.link), state=state)


def _make_bridge(control: Netlink) -> None:
    control.link("set", index=_index(control, "lo"), state="up")
    control.link("add", ifname=BRIDGE, kind="bridge")
    control.addr(
        "add", index=_index(control, BRIDGE), address=CONTROL_ADDRESS, prefixlen=PREFIX_LENGTH
    )
    control.link("set", index=_index(control, BRIDGE), state="up")


def _attach(control: Netlink, node: Node) -> None:
    """Make the node's veth pair, one end a port of the bridge, and the route to its pods."""
    peer = {"ifname": NODE_LINK, "net_ns_fd": node.netns}
    control.link("add", ifname=node.link, kind="veth", peer=peer)
    control.link(
        "set", index=_index(control, node.link), master=_index(control, BRIDGE), state="up"
    )
    control.route("add", dst=node.pod_cidr, gateway=node.address)


def _configure(node: Node) -> None:
    with _netlink(node.netns) as inside:
        inside.link("set", index=_index(inside, "lo"), state="up")
        link = _index(inside, NODE_LINK)
        inside.addr("add", index=link, address=node.address, prefixlen=PREFIX_LENGTH)
        inside.link("set", index=link, state="up")
        # services have no route of their own: kube-proxy rewrites what goes the default way
        inside.route("add", dst="default", gateway=CONTROL_ADDRESS)
        for other in NODES:
            if other != node:
                inside.route("add", dst=other.pod_cidr, gateway=other.address)


def _index(netlink: Netlink, name: str) -> int:
    (index,) = netlink.link_lookup(ifname=name)
    return index


@contextlib.contextmanager
def _netlink(netns: str) -> Iterator[Netlink]:
    with pyroute2.IPRoute(netns=netns) as inside:  # type: ignore[attr-defined, no-untyped-call]
        yield inside
