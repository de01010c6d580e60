# SPDX-License-Identifier: Apache-2.0
"""What an administrator says in the agent's environment."""

from pathlib import Path

from devicemount_agent import directories
from devicemount_agent.settings import Settings


def test_the_runtimes_socket_may_have_another_name() -> None:
    """As docs/install.md has it for cri-dockerd."""
    settings = Settings.from_environment({"DM_CRI_SOCKET": "/run/containerd/cri-dockerd.sock"})
    assert settings.cri_socket == Path("/run/containerd/cri-dockerd.sock")
    assert directories.lacking(settings).startswith("no cri-dockerd.sock in /run/containerd: ")


def test_everything_else_is_as_the_manifests_have_it() -> None:
    assert Settings.from_environment({"PATH": "/bin"}) == Settings()
