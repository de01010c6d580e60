# SPDX-License-Identifier: Apache-2.0
"""What a wrong directory of the node looks like from inside, and where to correct it.

The paths inside the agent's container are fixed; each is a volume of the DaemonSet, whose hostPath
is the one place that says where this node has it (k3s, k0s, a moved kubelet root). A wrong one is
mounted without complaint and merely lacks what belongs there: so that is said, with the volume.
"""

from collections.abc import Iterator
from pathlib import Path

from devicemount_agent.settings import Settings

REGISTRATION_SOCKET = "kubelet.sock"  # the kubelet makes it in device-plugins when it starts


def lacking(settings: Settings) -> str:
    """Return, for every directory that lacks its socket, what and which volume; "" if none does.

    A kubelet or runtime that is about to start looks alike: the caller asks again.
    """
    return "; ".join(_lacking(settings))


def _lacking(settings: Settings) -> Iterator[str]:
    registration = settings.device_plugins_directory / REGISTRATION_SOCKET
    yield from _without(settings.cri_socket, volume="runtime", what="the container runtime's")
    yield from _without(registration, volume="device-plugins", what="the kubelet's")
    yield from _without(
        settings.pod_resources_socket, volume="pod-resources", what="the kubelet's PodResources"
    )


def _without(socket: Path, *, volume: str, what: str) -> Iterator[str]:
    if not socket.is_socket():
        yield (
            f"no {socket.name} in {socket.parent}: {what} socket belongs there; if it is elsewhere"
            f" on this node, correct hostPath of the volume {volume} of the DaemonSet"
            " devicemount-agent"
        )
