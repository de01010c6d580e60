# SPDX-License-Identifier: Apache-2.0
"""What kubectl wait, Flux and Argo CD make of objects, by their own code and our health script."""

import asyncio
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from component.operator.control_plane import binaries
from component.operator.scene import ROOT
from devicemount_testbed.build import GITOPS_HEALTH, build_now
from devicemount_testbed.layout import default_layout

ARGOCD_CM = ROOT / "docs/examples/argocd/argocd-cm.yaml"
KEY = "resource.customizations.health.devicemount.io_DeviceMount"


@dataclass(frozen=True)
class Health:
    """Two tools' verdicts on one object."""

    flux: str
    argo: str
    message: str  # Argo CD's


def script() -> str:
    """Return the health script as we ship it."""
    return str(yaml.safe_load(ARGOCD_CM.read_text(encoding="utf-8"))["data"][KEY])


async def health(objects: list[dict[str, Any]]) -> list[Health]:
    """Ask kstatus, which is what Flux asks, and the script as Argo CD runs it."""
    program = await asyncio.to_thread(build_now, default_layout(), GITOPS_HEALTH)
    question = json.dumps({"script": script(), "objects": objects})
    answer = await asyncio.to_thread(_run, [str(program)], question)
    return [Health(v["kstatus"], v["argo"], v["argoMessage"]) for v in json.loads(answer)]


async def met(kubeconfig: Path, *, namespace: str) -> set[str]:
    """Return the DeviceMounts of which `kubectl wait` says at once that they are Ready."""
    said = await asyncio.to_thread(
        subprocess.run,
        [
            *(binaries() / "kubectl", f"--kubeconfig={kubeconfig}", "wait", f"-n={namespace}"),
            *("--for=condition=Ready", "--timeout=0s", "devicemounts.devicemount.io", "--all"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.partition(" ") for line in said.stdout.splitlines()]
    assert all(end == "condition met" for _, _, end in lines), said
    return {name.rpartition("/")[2] for name, _, _ in lines}


def _run(argv: list[str], text: str) -> str:
    return subprocess.run(argv, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout
