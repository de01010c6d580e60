# SPDX-License-Identifier: Apache-2.0
"""Where files lie: a cache that outlives runs (`bin`, images), and the state of the run."""

import os
from dataclasses import dataclass
from pathlib import Path

from devicemount_testbed.topology import Node

DATA = Path(__file__).parent / "data"
COMPONENTS = Path(__file__).parent / "components"


@dataclass(frozen=True, slots=True)
class Layout:
    """Every path of one cache directory."""

    cache: Path

    @property
    def bin(self) -> Path:
        return self.cache / "bin"

    @property
    def images(self) -> Path:
        """Image archives, ready to be loaded into nodes."""
        return self.cache / "images"

    @property
    def storage(self) -> Path:
        """buildah's own image store."""
        return self.cache / "buildah"

    @property
    def crun(self) -> Path:
        """The libraries of the crun in `bin`."""
        return self.cache / "crun"

    @property
    def lock(self) -> Path:
        return self.cache / "testbed.lock"

    @property
    def state(self) -> Path:
        return self.cache / "testbed"

    @property
    def record(self) -> Path:
        return self.state / "record.json"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def log(self) -> Path:
        """Survives `down`, for whoever asks afterwards; the next `up` empties it."""
        return self.cache / "log"

    def node(self, node: Node) -> Path:
        return self.state / node.name

    @property
    def audit_log(self) -> Path:
        """What the operator has written to the API server."""
        return self.log / "audit.log"

    def log_of(self, component: str) -> Path:
        return self.log / f"{component}.log"


def default_layout() -> Layout:
    configured = os.environ.get("DEVICEMOUNT_CACHE")
    cache = Path(configured) if configured else Path.home() / ".cache" / "devicemount"
    return Layout(cache=cache.absolute())
