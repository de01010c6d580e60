# SPDX-License-Identifier: Apache-2.0
"""Who gets into a shadow pod finds nothing to run there, and cannot make its fence fall."""

import subprocess
from pathlib import Path

import pytest

from cluster.world import DEADLINE_S, Mount, World, eventually
from devicemount_testbed.api import Object, pod_path
from vendors.inside import first_process

REPOSITORY = Path(__file__).resolve().parents[2]
STRATEGIC = "application/strategic-merge-patch+json"
DEBUGGER = "debugger"


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What sends its PID 1 every signal, and forged ones in every way that there is."""
    binary = tmp_path_factory.mktemp("forge") / "forge"
    source = REPOSITORY / "tests/node/hold/forge.c"
    subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(binary), str(source)], check=True)
    return binary


def _shadow(mount: Mount) -> Object:
    """Return the shadow pod once its process, the fence, runs."""
    eventually(
        lambda: mount.shadow_pods()[0]["status"].get("phase") == "Running", what="the fence stands"
    )
    return mount.shadow_pods()[0]


def _run(
    world: World, pod: str, container: str, *argv: str, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = world.testbed.kubectl_command(
        "exec", "-i", "-n", world.namespace, pod, "-c", container, "--", *argv
    )
    return subprocess.run(
        command,
        env=world.testbed.kubectl_environment,
        input=stdin or b"",
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )


def _debug(world: World, pod: str) -> None:
    """Put a container with a shell into the pod, in the pid namespace of `hold`, as an
    administrator may."""
    container = {
        "name": DEBUGGER,
        "image": "localhost/busybox:1",
        "targetContainerName": "hold",
        "command": ["sleep", "infinity"],
        "securityContext": {"runAsUser": 0, "runAsNonRoot": False},
    }
    path = f"{pod_path(world.namespace, pod)}/ephemeralcontainers"
    world.api.call("PATCH", path, {"spec": {"ephemeralContainers": [container]}}, kind=STRATEGIC)

    def runs(found: Object | None) -> bool:
        statuses = (found or {})["status"].get("ephemeralContainerStatuses") or []
        return bool(statuses) and "running" in statuses[0]["state"]

    world.api.until(pod_path(world.namespace, pod), runs, deadline_s=30, what="the debugger runs")


def test_nobody_inside_makes_it_fall(world: World, node: str, forge: Path) -> None:
    pod = world.pod("notebook", node=node)
    mount = world.mount("guarded", pod).ready()
    shadow, since = _shadow(mount), mount.target["since"]
    name = shadow["metadata"]["name"]
    pid = first_process(shadow["status"]["containerStatuses"][0]["containerID"])

    for argv in (["sh"], ["/bin/sh", "-c", "true"], ["ls"], ["cat", "/proc/1/comm"]):
        assert _run(world, name, "hold", *argv).returncode != 0, argv

    _debug(world, name)
    put = "cat > /tmp/forge && chmod +x /tmp/forge"
    assert _run(world, name, DEBUGGER, "sh", "-c", put, stdin=forge.read_bytes()).returncode == 0
    attacked = _run(world, name, DEBUGGER, "/tmp/forge")
    assert int(attacked.stdout) > 0, "the kernel delivers some forgeries"
    _run(world, name, DEBUGGER, "sh", "-c", "kill -TERM 1; kill -USR1 1; kill -KILL 1")

    assert Path(f"/proc/{pid}/comm").read_text() == "hold\n"
    assert pod.opens(mount.files()[0])
    now = _shadow(mount)
    assert now["metadata"]["uid"] == shadow["metadata"]["uid"]
    assert now["status"]["containerStatuses"][0]["restartCount"] == 0
    assert mount.ready().target["since"] == since
