# SPDX-License-Identifier: Apache-2.0
"""The pages' commands do what the pages say: each is pasted into one terminal, block by block.

The terminal stands in a namespace of its own. Images that a page names are the testbed's busybox
under that name; the vendors are stand-ins.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import pytest
import yaml

from cluster import moffett, plugins
from cluster.pages import DOCS, Block, blocks
from cluster.world import SYSTEM, World, eventually
from devicemount_testbed.cluster import Testbed
from vendors.machines import machine

ROOT = DOCS.parent
BUSYBOX = "localhost/busybox:1"
NODE = "node1"  # has the stand-ins
PAGE_TIMEOUT_S = 240

_IMAGE = re.compile(r"^\s*image: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Terminal:
    """Where the commands of a page run."""

    world: World
    directory: Path  # has what a checkout has, and may be written to

    @property
    def testbed(self) -> Testbed:
        return self.world.testbed

    def paste(self, script: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "KUBECONFIG": str(self.directory / "kubeconfig"),
            "PATH": f"{self.testbed.layout.bin}:{os.environ['PATH']}",
        }
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PAGE_TIMEOUT_S,
            check=False,
        )


Scene = Callable[[Terminal], AbstractContextManager[None]]


@contextmanager
def nothing(terminal: Terminal) -> Iterator[None]:
    """The page brings all that it needs."""
    yield


@contextmanager
def own_devices(terminal: Terminal) -> Iterator[None]:
    """The page gives the plugin another configuration; afterwards it has its own again."""
    testbed = terminal.testbed
    path = f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/devicemount-plugin"
    volumes = terminal.world.api.call("GET", path)["spec"]["template"]["spec"]["volumes"]
    before = configmaps(testbed)
    try:
        yield
    finally:
        patch = {"spec": {"template": {"spec": {"volumes": volumes}}}}
        terminal.world.api.call("PATCH", path, patch, kind="application/strategic-merge-patch+json")
        testbed.kubectl("-n", SYSTEM, "rollout", "status", "daemonset/devicemount-plugin")
        for name in configmaps(testbed) - before:
            testbed.kubectl("-n", SYSTEM, "delete", "configmap", name)


def configmaps(testbed: Testbed) -> set[str]:
    listed = testbed.kubectl("-n", SYSTEM, "get", "configmaps", "-o", "name").split()
    return {name.removeprefix("configmap/") for name in listed}


@contextmanager
def nvidia_gpus(terminal: Terminal) -> Iterator[None]:
    with (
        labelled(terminal, "nvidia.com/gpu.present", "true"),
        runtime_class(terminal, "nvidia"),
        machine(terminal.testbed, NODE, "nvidia"),
    ):
        await_offer(terminal, "nvidia.com/gpu")
        yield


@contextmanager
def volcano_vgpus(terminal: Terminal) -> Iterator[None]:
    with machine(terminal.testbed, NODE, "volcano"):
        await_offer(terminal, "volcano.sh/vgpu-number")
        yield


@contextmanager
def ascend_npus(terminal: Terminal) -> Iterator[None]:
    with (
        labelled(terminal, "accelerator", "huawei-Ascend910"),
        machine(terminal.testbed, NODE, "ascend"),
    ):
        await_offer(terminal, "huawei.com/Ascend910")
        yield


@contextmanager
def moffett_spus(terminal: Terminal) -> Iterator[None]:
    """Four cards; the page's manifest is the shipped one but for the image and the cards' /sys."""
    config = yaml.safe_load(moffett.CONFIG.read_text())
    objects = plugins.objects_of(
        terminal.world.api, node=NODE, config=config, sys=f"/{moffett.STAND_IN}/sys"
    )
    manifest = terminal.directory / plugins.MANIFEST.relative_to(ROOT)
    manifest.write_text(yaml.safe_dump_all(objects))
    with moffett.placed_cards(terminal.testbed, terminal.world.api, node=NODE):
        try:
            yield
        finally:
            terminal.testbed.kubectl("delete", "--ignore-not-found", "-f", str(manifest))


def await_offer(terminal: Terminal, resource: str) -> None:
    eventually(
        lambda: terminal.world.free(NODE, resource) > 0,
        what=f"{NODE} offers {resource} to the scheduler",
    )


@contextmanager
def labelled(terminal: Terminal, key: str, value: str) -> Iterator[None]:
    """Let the node have the label that the vendor's installation gives it."""
    terminal.testbed.kubectl("label", "node", NODE, f"{key}={value}", "--overwrite")
    try:
        yield
    finally:
        terminal.testbed.kubectl("label", "node", NODE, f"{key}-")


@contextmanager
def runtime_class(terminal: Terminal, name: str) -> Iterator[None]:
    """Let the vendor's RuntimeClass be there; what its runtime would do, the stand-in has done."""
    body = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": name},
        "handler": "runc",
    }
    path = "/apis/node.k8s.io/v1/runtimeclasses"
    terminal.world.api.call("POST", path, body)
    try:
        yield
    finally:
        terminal.world.api.delete(f"{path}/{name}")


@contextmanager
def own_profiles(terminal: Terminal) -> Iterator[None]:
    """The page adds a profile for everybody; afterwards there is none again."""
    try:
        yield
    finally:
        terminal.testbed.kubectl(
            "-n", SYSTEM, "delete", "configmap", "devicemount-profiles", "--ignore-not-found"
        )


SCENES: dict[str, Scene] = {
    "start.md": own_devices,
    "budgets.md": nothing,
    "profiles.md": own_profiles,
    "troubleshooting.md": nothing,
    "quick-starts/own-plugin.md": own_devices,
    "quick-starts/nvidia-gpu.md": nvidia_gpus,
    "quick-starts/volcano-vgpu.md": volcano_vgpus,
    "quick-starts/ascend-npu.md": ascend_npus,
    "quick-starts/moffett-spu.md": moffett_spus,
}
ELSEWHERE = {
    "certificates.md": "tests/cluster/test_certificates.py, which takes all that are not marked",
    "install.md": "tests/cluster/test_install.py, which asserts that none is left over",
    "quick-starts/moffett-spu.zh.md": "has the commands of moffett-spu.md",
}


@pytest.fixture(scope="module")
def executed(request: pytest.FixtureRequest) -> Iterator[list[Block]]:
    """Collect what was run, and tell the numbers at the end."""
    ran: list[Block] = []
    yield ran
    left_out = [block for page in DOCS.rglob("*.md") for block in blocks(page) if block.not_run]
    plugins_of = request.config.pluginmanager
    say = plugins_of.get_plugin("terminalreporter").write_line
    with plugins_of.get_plugin("capturemanager").global_and_fixture_disabled():
        say(f"\nblocks of the pages: {len(ran)} executed, {len(left_out)} not executed")
        for block in left_out:
            say(f"  {block}: {block.not_run}")


@pytest.fixture
def terminal(world: World, tmp_path: Path) -> Terminal:
    for name in ("manifests", "crds"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(world.testbed.kubeconfig, tmp_path / "kubeconfig")
    made = Terminal(world, tmp_path)
    made.paste(f"kubectl config set-context --current --namespace={world.namespace}")
    return made


@contextmanager
def images(testbed: Testbed, page: Path) -> Iterator[None]:
    """Let every node have busybox under the names of the page's images."""
    named = {name for block in blocks(page) for name in _IMAGE.findall(block.script)}
    with ExitStack() as undo:
        for name in sorted(named):
            for node in testbed.nodes:
                undo.enter_context(_image(testbed, node.name, _full_name(name)))
        yield


@contextmanager
def _image(testbed: Testbed, node: str, name: str) -> Iterator[None]:
    ctr = ["ctr", "--namespace", "k8s.io", "images"]
    tagged = testbed.exec(node, [*ctr, "tag", "--force", BUSYBOX, name])
    assert tagged.returncode == 0, tagged.stderr
    try:
        yield
    finally:
        testbed.exec(node, [*ctr, "rm", name])


def _full_name(image: str) -> str:
    """Return the name as the runtime keeps it: busybox:1 -> docker.io/library/busybox:1."""
    first, _, rest = image.partition("/")
    if not rest:
        return f"docker.io/library/{image}"
    return image if "." in first or first == "localhost" else f"docker.io/{image}"


@pytest.mark.parametrize("name", SCENES)
def test_a_page_does_what_it_says(name: str, terminal: Terminal, executed: list[Block]) -> None:
    page = DOCS / name
    to_run = [block for block in blocks(page) if not block.not_run]
    with images(terminal.testbed, page), SCENES[name](terminal):
        done = terminal.paste(as_script(to_run))
        said = terminal.paste("kubectl get devicemounts -o jsonpath='{.items[*].status}'").stdout
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{said}"
    executed += to_run


def as_script(to_run: list[Block]) -> str:
    """Return them as one script that says which block it is at."""
    return "".join(f"echo == {quote(str(block))} >&2\n{block.script}" for block in to_run)


def test_every_page_with_commands_is_run() -> None:
    to_run = {
        block.page for page in DOCS.rglob("*.md") for block in blocks(page) if not block.not_run
    }
    pages = {str(page.relative_to(DOCS)) for page in to_run}
    assert pages == SCENES.keys() | ELSEWHERE.keys()
