# SPDX-License-Identifier: Apache-2.0
"""Where this node has what commands it, if that is not where nodes usually have it.

The kubelet's directory can be moved by a setting or by a symlink, a runtime's likewise. Whether a
path may enter a container is decided about the place where it ends, so here is found where these
end. What a setting moved shows in the agent's own volumes: they are of those very directories, and
the node's mounts tell where it has them. Looked at once: neither moves under a running kubelet.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from devicemount_agent.allocation.host import Host
from devicemount_agent.allocation.live import MOUNTS_LIMIT_BYTES, NODE_MOUNTS
from devicemount_agent.graft.mountinfo import Mounted, parsed
from devicemount_agent.profiles.paths import NEVER, TOP
from devicemount_agent.settings import Settings

_ROOT = PurePosixPath("/")


def moved_on(
    host: Host, settings: Settings, *, mounts: Iterable[Mounted]
) -> tuple[PurePosixPath, ...]:
    """Return the places. `mounts` are the agent's own. Raises OSError."""
    text = host.text(NODE_MOUNTS, limit_bytes=MOUNTS_LIMIT_BYTES)
    on_node = parsed(text.removesuffix("\n").split("\n"))
    own = tuple(mounts)
    moved = {*_linked(host), *_of_runtime(settings.cri_socket, own, on_node)}
    for directory in (settings.journal_directory, settings.files_directory):
        moved.update(places_of(directory, own, on_node))
    for directory in (settings.device_plugins_directory, settings.pod_resources_socket.parent):
        moved.update(place.parent for place in places_of(directory, own, on_node))  # its root
    usual = set(NEVER)
    return tuple(sorted(p for p in moved if p != _ROOT and usual.isdisjoint((p, *p.parents))))


def places_of(
    directory: Path, own: Iterable[Mounted], on_node: Iterable[Mounted]
) -> Iterator[PurePosixPath]:
    """Yield every place where the node has what we have at a path."""
    covering: Mounted | None = None
    for mount in own:
        is_closer = covering is None or len(mount.point.parts) >= len(covering.point.parts)
        if is_closer and PurePosixPath(directory).is_relative_to(mount.point):
            covering = mount
    if covering is None:
        return
    inside = PurePosixPath(covering.root) / PurePosixPath(directory).relative_to(covering.point)
    for mount in on_node:
        if mount.device == covering.device and inside.is_relative_to(mount.root):
            yield mount.point / inside.relative_to(mount.root)


def _linked(host: Host) -> Iterator[PurePosixPath]:
    for own in map(str, NEVER):
        if host.exists(own):
            yield PurePosixPath(host.find(own).path)


def _of_runtime(
    socket: Path, own: Iterable[Mounted], on_node: Iterable[Mounted]
) -> Iterator[PurePosixPath]:
    for place in places_of(socket.parent, own, on_node):
        yield place if len(place.parts) > TOP else place / socket.name  # in /run: not all of /run
