# SPDX-License-Identifier: Apache-2.0
"""Looks at a container, and at the node, for what a grant is to bring. Changes nothing.

Many calls to the kernel: for a thread, on what the caller has taken from the ledger before.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from devicemount_agent.container.find import Container
from devicemount_agent.graft import edits, graft
from devicemount_agent.graft.files import Files
from devicemount_agent.graft.places import Places
from devicemount_agent.graft.sources import Sources
from devicemount_agent.ledger import Grant
from devicemount_agent.model import Bound, DeviceNumber, PodUID
from devicemount_agent.planning import Planned


def survey(
    grant: Grant,
    container: Container,
    *,
    placed: frozenset[Bound],
    sources: Sources,
    files: Files,
) -> Planned:
    """Find where all of a grant goes; `placed` is what it has there already.

    Raises for what must not be placed as edits.plan does. Where other grants come or go in the
    container meanwhile, their mounts may be what is refused.
    """
    root, nodes, places = sources.node_root, grant.present(), Places(container)
    return Planned(
        kept=edits.remaining(places, placed),
        edits=edits.plan(places, grant.edits(), nodes=nodes, sources=sources, files=files),
        nodes=graft.missing(places, nodes),
        hosted=frozenset(
            n.path for n in nodes if graft.number_on_node(n.host_path, root) == n.number
        ),
    )


def numbers_on_node(
    grants: Collection[Grant], root: Path
) -> Mapping[PodUID, Mapping[str, DeviceNumber | None]]:
    """Return what the node has now in place of the device files that it had, by their paths in
    the container."""
    return {
        grant.shadow.uid: {
            node.path: graft.number_on_node(node.host_path, root)
            for node in grant.nodes()
            if node.path in grant.hosted
        }
        for grant in grants
    }
