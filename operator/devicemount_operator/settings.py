# SPDX-License-Identifier: Apache-2.0
"""Every knob of the operator. What a manifest sets comes from the environment; the rest are
reasoned constants."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from devicemount_operator.errors import DeviceMountError

# What vendors' schedulers let a tenant say of its own pod; never what tells a device plugin what
# was decided.
RESERVATION_ANNOTATIONS: Final = (
    "scheduling.volcano.sh/queue-name",
    "volcano.sh/vgpu-mode",
    "nvidia.com/use-gputype",
    "nvidia.com/nouse-gputype",
)


class MissingSetting(DeviceMountError):
    """An environment variable without which the operator cannot work is not set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Set by the environment (see `from_environment`) or left as they are."""

    namespace: str  # where operator, agents and the Lease live
    identity: str  # holder of the Lease: the pod's name
    hold_image: str  # the shadow pods' only image
    tls_directory: Path  # where it exists, others mount tls.crt, tls.key, ca.crt; else we make them

    # A Secret of the tenant's namespace with which the shadow pods' image is pulled; "": none. The
    # kubelet asks for credentials of cached images too (1.35).
    hold_pull_secret: str = ""

    # Keys that spec.reservation.annotations may have.
    reservation_annotations: tuple[str, ...] = RESERVATION_ANNOTATIONS

    health_port: int = 8080  # plain HTTP: liveness and readiness
    agent_port: int = 9443

    workers: int = (
        16  # passes at once; a pass is some requests, so this bounds what the API server gets
    )
    target_poll_s: float = 2.0  # a target pod that is waited for is asked for this often
    agent_poll_s: float = 1.0  # `List` of every node that has mounts, while its stream is cut
    agent_check_s: float = 10.0  # the same while it streams: in case that a stream tells too little
    resync_s: float = (
        300.0  # DeviceMounts listed again: what a watch may have lost without saying so
    )

    certificates_s: float = 10.0  # certificates are looked at this often

    request_timeout_s: float = 10.0  # any single request to the API server
    apply_timeout_s: float = 30.0  # an agent waits for the kubelet's choice no longer
    remove_timeout_s: float = (
        30.0  # searches of every process of the node; holders are waited for by asking again
    )
    list_timeout_s: float = 5.0

    # The Lease, as kube-controller-manager has it: writes stop at the renew deadline, before
    # another may acquire it.
    lease_duration_s: float = 15.0
    lease_renew_deadline_s: float = 10.0
    lease_retry_s: float = 2.0
    lease_watch_s: float = (
        1.0  # a standby looks this often: a Lease that is given back is missed no longer
    )


def from_environment(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read what manifests set. Raises MissingSetting."""
    if "DEVICEMOUNT_HOLD_IMAGE" not in environ:
        raise MissingSetting("DEVICEMOUNT_HOLD_IMAGE: the image of the shadow pods' process")
    annotations = environ.get("DEVICEMOUNT_RESERVATION_ANNOTATIONS")
    return Settings(
        namespace=environ.get("POD_NAMESPACE", "devicemount-system"),
        identity=environ.get("POD_NAME", "") or socket.gethostname(),
        hold_image=environ["DEVICEMOUNT_HOLD_IMAGE"],
        hold_pull_secret=environ.get("DEVICEMOUNT_HOLD_PULL_SECRET", ""),
        reservation_annotations=RESERVATION_ANNOTATIONS
        if annotations is None
        else tuple(filter(None, (key.strip() for key in annotations.split(",")))),
        tls_directory=Path(environ.get("DEVICEMOUNT_TLS_DIRECTORY", "/etc/devicemount/tls")),
    )
