# SPDX-License-Identifier: Apache-2.0
"""A program that needs its device when it starts: it waits for the ready file, as the page says."""

import re
from typing import Any

import yaml

from cluster.pages import DOCS
from cluster.world import Pod, World, eventually
from devicemount_testbed.api import Object

NAMED = "notebook-gpu"  # the DeviceMount of the page
# Reads the first device file of the resource that there is, or fails as a program without it would.
PROGRAM = 'head -c 1 /dev/vcs* >/dev/null || exit 3; echo "began"; exec sleep 1000'


def documented(name: str) -> dict[str, Any]:
    """Return what a container has to have in it, as the page has it for another DeviceMount."""
    page = (DOCS / "faq.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(command: .*?)```", page, re.DOTALL)
    assert block.count(NAMED) == 1
    return dict(yaml.safe_load(block.replace(NAMED, name)), args=["sh", "-c", PROGRAM])


def began(pod: Pod) -> bool:
    """Tell whether the container that runs now has found its device."""
    log = pod.world.testbed.kubectl("logs", "-n", pod.world.namespace, pod.name)
    return log.splitlines() == ["began"]


def test_a_program_that_needs_its_device_at_start_waits_for_it(world: World, node: str) -> None:
    container = {"name": "main", "image": "localhost/busybox:1", **documented("needed")}
    pod = world.pod("program", node=node, containers=[container])
    assert not began(pod), "it waits"
    mount = world.mount("needed", pod).ready()
    eventually(lambda: began(pod), what="it has found its device")
    device, (former, _, _) = mount.target["devices"], pod.identity()
    pod.kill_main_process()

    def runs_again(found: Object | None) -> bool:
        status = (found or {})["status"]["containerStatuses"][0]
        return status["containerID"] != former and "running" in status["state"]

    world.api.until(pod.path, runs_again, deadline_s=30, what="restarted")
    eventually(lambda: began(pod), what="it has found its device again")
    assert pod.identity()[1] == 1, "it never began without its device"
    mount.ready()
    assert mount.target["devices"] == device
