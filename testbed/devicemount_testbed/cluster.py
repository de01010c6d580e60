# SPDX-License-Identifier: Apache-2.0
"""The running testbed as tests and tools see it: kubectl, a way into each node, paths."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from devicemount_testbed.commands import output_of, run
from devicemount_testbed.errors import ComponentDied, NotRunning
from devicemount_testbed.layout import Layout, default_layout
from devicemount_testbed.network import entering
from devicemount_testbed.node import enter_command, init_component, inside_environment, root_of
from devicemount_testbed.processes import is_running
from devicemount_testbed.record import Record, load
from devicemount_testbed.topology import CONTROL_NETNS, NODES, Node, node_named


@dataclass(frozen=True, slots=True)
class Testbed:
    """A handle on the running testbed; it holds no connection and may be made at any time."""

    __test__: ClassVar[bool] = False  # pytest would collect the name

    layout: Layout
    record: Record

    @classmethod
    def from_record(cls, layout: Layout | None = None) -> "Testbed":
        """Find the running testbed; raise NotRunning if there is none."""
        where = layout or default_layout()
        record = load(where.record)
        if record is None:
            raise NotRunning(state=where.state)
        return cls(layout=where, record=record)

    @property
    def kubeconfig(self) -> Path:
        return self.layout.kubeconfig

    @property
    def state_dir(self) -> Path:
        return self.layout.state

    @property
    def nodes(self) -> tuple[Node, ...]:
        return NODES

    @property
    def kubectl_environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def kubectl_command(self, *arguments: str) -> list[str]:
        return [str(self.layout.bin / "kubectl"), *arguments]

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Run kubectl as cluster admin and return its output; raise CommandFailed."""
        return output_of(
            self.kubectl_command(*arguments), env=self.kubectl_environment, stdin=input
        )

    def try_kubectl(self, *arguments: str) -> str:
        """Run kubectl for a person to read: what it printed, whatever its exit status."""
        done = run(self.kubectl_command(*arguments), env=self.kubectl_environment)
        return done.stdout + done.stderr

    def exec_command(self, node: Node | str, argv: list[str]) -> list[str]:
        """The command that runs `argv` in the node's namespaces; see inside_environment."""
        return enter_command(self.node_pid(node), argv)

    def exec(self, node: Node | str, argv: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a program in the node's namespaces (mount, uts, net, pid)."""
        return run(self.exec_command(node, argv), env=inside_environment(self.layout))

    def in_control_netns(self, argv: list[str]) -> list[str]:
        """Prefix a command so that it can reach the addresses of nodes and pods."""
        return entering(CONTROL_NETNS, argv)

    def node_pid(self, node: Node | str) -> int:
        """Return the machine's pid of the node's PID 1."""
        name = node_named(node).name if isinstance(node, str) else node.name
        init = self.record.process(init_component(name))
        if init is None or not is_running(init):
            raise ComponentDied(component=name, log=self.layout.log_of(name))
        return init.pid

    def node_root(self, node: Node | str) -> Path:
        """The node's file system, for example / "var/lib/kubelet/device-plugins"."""
        return root_of(self.node_pid(node))
