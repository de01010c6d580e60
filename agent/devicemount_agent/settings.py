# SPDX-License-Identifier: Apache-2.0
"""Every knob of the agent, from its environment: `DM_` and the field's name in capitals."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are. The defaults are what manifests/base mounts."""

    listen: str = "[::]:9443"  # gRPC, mutual TLS; on the pod's own address
    health_port: int = 8080  # plain HTTP: nothing but two yes or no answers
    tls_directory: Path = Path("/etc/devicemount/tls")
    journal_directory: Path = Path("/run/devicemount/journal")  # a tmpfs: outlives the agent only
    files_directory: Path = Path("/run/devicemount/files")  # env and ready files, by container
    cri_socket: Path = Path("/run/containerd/containerd.sock")
    device_plugins_directory: Path = Path("/var/lib/kubelet/device-plugins")  # the checkpoint's
    pod_resources_socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    cdi_directory: Path = Path("/etc/cdi")  # specs that somebody wrote; CDI's own default
    cdi_dynamic_directory: Path = Path("/var/run/cdi")  # specs made at run time; these go first
    plugin_directory: Path = Path("/run/devicemount-plugin")  # what our device plugin misses
    profiles_directory: Path = Path("/etc/devicemount/profiles")  # an administrator's own
    node_root: Path = Path("/proc/1/root")  # the node's file system (hostPID): drivers, mounts
    hold: Path = Path("/usr/local/bin/hold")  # its second verb checks access from inside a cgroup

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings. Raises ValueError for a port that is no number."""
        given = {
            field.name: environment[name]
            for field in fields(cls)
            if (name := f"DM_{field.name.upper()}") in environment
        }
        default = cls()
        return cls(**{name: type(getattr(default, name))(value) for name, value in given.items()})
