# SPDX-License-Identifier: Apache-2.0
"""Removes the files of devices that are not there any more, from a container that keeps its grant.

Access has ended before: what cannot be removed keeps no device, and must not hide that it is gone.
"""

from collections.abc import Collection, Iterator

from devicemount_agent.container.find import Container
from devicemount_agent.errors import DeviceMountError
from devicemount_agent.graft import edits, graft
from devicemount_agent.model import Bound, DeviceNode


def displace(
    container: Container,
    paths: Collection[str],
    *,
    sets: Collection[Collection[DeviceNode]],
    bound: Collection[Bound],
) -> str:
    """Remove these paths as each set of nodes, and mounts, made them; say what has to stay.

    Whatever fails, the rest is tried. The caller holds the pod's lock.
    """
    left = []
    try:
        container.follow(graft.supported)
    except (OSError, DeviceMountError) as error:
        left.append(str(error))
    for nodes in sets:
        left += _displaced(container, paths, nodes=nodes, bound=bound)
    return "; ".join(left)


def _displaced(
    container: Container,
    paths: Collection[str],
    *,
    nodes: Collection[DeviceNode],
    bound: Collection[Bound],
) -> Iterator[str]:
    gone = frozenset(node.path for node in nodes if node.path in paths)
    try:
        edits.displace(container, [b for b in bound if b.path in gone], (), gone)
    except (OSError, DeviceMountError) as error:
        yield f"{','.join(sorted(gone))}: {error}"
    try:
        yield from graft.displace(container, nodes, gone)
    except (OSError, DeviceMountError) as error:
        yield f"{','.join(sorted(gone))}: {error}"
