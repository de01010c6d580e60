# SPDX-License-Identifier: Apache-2.0
"""A machine with four NVIDIA GPUs, one of them cut into MIG instances, and its device plugin.

The machine is that of tests/data/vendor-answers/runtime-resolution.json. Its CDI spec is written
by NVIDIA's own nvcdi with a mock NVML (testbed component nvidia-cdi), and NVIDIA's own CDI hook
runs at the start of containers that the runtime gives a GPU.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from devicemount_testbed.build import NVIDIA_CDI, NVIDIA_CDI_HOOK, build_now
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.node import inside_environment
from vendor_answers import MAIN, Case, resolution
from vendors.answers import Json, case
from vendors.node import NodeFiles, lay_out, node_files
from vendors.plugin import StandIn, answering, await_known, registered

GPU = "nvidia.com/gpu"
MIG = "nvidia.com/mig-1g.10gb"
DRIVER = "575.57.08"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
SPEC = "/var/run/cdi/k8s.device-plugin.nvidia.com-gpu.json"
HOOK = "/usr/bin/nvidia-cdi-hook"
# NVIDIA's own program, but for the one hook that needs the driver in a container's /proc.
HOOK_SCRIPT = """#!/bin/sh
if [ "$1" = disable-device-node-modification ]; then exit 0; fi
exec {program} "$@"
"""
SONAMES = {
    "libcuda": "libcuda.so.1",
    "libnvidia-ml": "libnvidia-ml.so.1",
    "libnvidia-ptxjitcompiler": "libnvidia-ptxjitcompiler.so.1",
    "libcudadebugger": "libcudadebugger.so.1",
}


@dataclass(frozen=True)
class Nvidia:
    """The stand-in of one node."""

    testbed: Testbed
    node: str
    gpus: StandIn
    migs: StandIn

    def answers(self, file: str, name: str = MAIN) -> Case:
        """Let the plugin have this case's devices from now on, and answer what it says."""
        chosen = case(file, name)
        stand_in = self.migs if chosen.entries[0].resource == self.migs.resource else self.gpus
        assert stand_in.resource == chosen.entries[0].resource, chosen
        stand_in.offer(chosen.entries[0].ids, answering(chosen.entries[0], marks()))
        await_known(self.testbed, self.node, stand_in)
        return chosen


@contextmanager
def nvidia(testbed: Testbed, node: str, file: str = "nvidia-envvar") -> Iterator[Nvidia]:
    """Make the node such a machine; its plugin offers the file's main case and two instances."""
    chosen, mig = case(file), case("nvidia-mig")
    gpus = StandIn(GPU, chosen.entries[0].ids, answering(chosen.entries[0], marks()))
    migs = StandIn(MIG, mig.entries[0].ids, answering(mig.entries[0]))
    with driver(testbed, node), registered(testbed, node, gpus, migs):
        yield Nvidia(testbed, node, gpus, migs)


@contextmanager
def driver(testbed: Testbed, node: str) -> Iterator[NodeFiles]:
    """Make what the driver makes (nodes, /proc, libraries), and the plugin's CDI spec."""
    with node_files(testbed, node) as files:
        root = resolution()["nvidia"]["fake_root"]
        lay_out(files, root)
        for name, soname in SONAMES.items():
            files.file(f"{LIBRARIES}/{name}.so.{DRIVER}", _library(soname))
            files.link(f"{LIBRARIES}/{soname}", f"{name}.so.{DRIVER}")
        files.file(HOOK, HOOK_SCRIPT.format(program=build_now(testbed.layout, NVIDIA_CDI_HOOK)))
        files.file(SPEC, json.dumps(yaml.safe_load(cdi_spec(testbed, node))))
        yield files


def cdi_spec(testbed: Testbed, node: str) -> str:
    """Return what NVIDIA's nvcdi says of the node, as the device plugin would have it."""
    program = build_now(testbed.layout, NVIDIA_CDI)
    machine = {
        "vendor": "k8s.device-plugin.nvidia.com",
        "driverRoot": "/",
        "hook": HOOK,
        "driver": DRIVER,
        "gpus": _gpus(),
    }
    done = subprocess.run(
        testbed.exec_command(node, [str(program)]),
        env=inside_environment(testbed.layout),
        input=json.dumps(machine),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def minors() -> dict[str, str]:
    """Return each GPU's own device node."""
    return {gpu["uuid"]: f"/dev/nvidia{gpu['minor']}" for gpu in _gpus()}


def marks() -> dict[str, tuple[str, ...]]:
    """Return by which device nodes a GPU is known in the plugin's answers."""
    return {uuid: (path,) for uuid, path in minors().items()}


def _gpus() -> list[Json]:
    """Return the fake root's GPUs in the order of their addresses, with their MIG instances."""
    said = resolution()["nvidia"]
    table = next(c for c in said["cases"] if c["name"] == "new MIG id with a table")
    instances = table["input"]["mig_table"]
    gpus = []
    for path, text in sorted(said["fake_root"]["files"].items()):
        if not path.endswith("/information"):
            continue
        facts = dict(line.split(":", 1) for line in text.splitlines())
        uuid = facts["GPU UUID"].strip()
        gpus.append(
            {
                "uuid": uuid,
                "minor": int(facts["Device Minor"]),
                "pciBusID": "0000" + facts["Bus Location"].strip(),  # NVML's domain has 8 digits
                "mig": [
                    {"uuid": name, "gpuInstance": one["gi"], "computeInstance": one["ci"]}
                    for name, one in instances.items()
                    if one["parent"] == uuid
                ],
            }
        )
    return gpus


def _library(soname: str) -> bytes:
    """Return a shared library that has nothing but its name."""
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory) / "library"
        flags = ["-shared", "-nostdlib", f"-Wl,-soname,{soname}", "-x", "c", "/dev/null"]
        subprocess.run(["gcc", "-o", made, *flags], check=True)
        return made.read_bytes()
