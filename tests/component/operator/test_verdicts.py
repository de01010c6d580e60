# SPDX-License-Identifier: Apache-2.0
"""kubectl wait, Flux and Argo CD say of every reason what docs/gitops.md says that they do."""

import re
from collections.abc import Mapping
from typing import Any

from component.operator import verdicts
from component.operator.control_plane import ControlPlane
from component.operator.scene import FINALIZER, ROOT, Scene
from devicemount_operator.api.v1alpha1 import DeviceMount
from devicemount_operator.reasons import Reason
from unit.operator.decide import kstatus, situations
from unit.operator.decide.situations import Situation

GITOPS = ROOT / "docs/gitops.md"
REASONS = ROOT / "docs/reasons.md"
FRESH, EDITED, DELETED = "fresh", "edited", "deleted"
READY = situations.of(Reason.MOUNTED)


def kinds() -> dict[str, str]:
    """Return the kind of each reason as the page of reasons says it."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", REASONS.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def promised() -> dict[str, tuple[str, str, str]]:
    """Return what the page on GitOps says of each kind: kubectl wait, Flux, Argo CD."""
    table = GITOPS.read_text(encoding="utf-8").partition("| kind of reason |")[2].partition("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[0].splitlines()[2:]]
    return {
        kind.strip(): (kubectl, flux, argo)
        for first, kubectl, flux, argo in rows
        for kind in first.partition(":")[0].split(",")
    }


def name_of(reason: Reason) -> str:
    return reason.value.lower()


async def made(scene: Scene, name: str, situation: Situation) -> DeviceMount:
    body = situations.body(situation)
    body["metadata"] = {"name": name}
    return DeviceMount.model_validate(await scene.call("POST", scene.mount_path(""), body))


async def told(scene: Scene, name: str, situation: Situation) -> None:
    """Make the object, and write the status that the operator decides on in that situation."""
    status = situation.status(await made(scene, name, situation))
    await scene.call("PATCH", scene.mount_path(name) + "/status", {"status": status})


async def not_of_a_reason(scene: Scene) -> None:
    """Make what nobody has looked at, what was edited since, and what is being deleted."""
    await made(scene, FRESH, READY)
    await told(scene, EDITED, READY)
    await scene.call("PATCH", scene.mount_path(EDITED), {"spec": {"suspend": True}})
    await told(scene, DELETED, READY)
    kept = {"metadata": {"finalizers": [FINALIZER]}}
    await scene.call("PATCH", scene.mount_path(DELETED), kept)
    await scene.delete(scene.mount_path(DELETED))


async def test_all_agree_on_every_reason(scene: Scene, api_server: ControlPlane) -> None:
    of, by_kind = kinds(), promised()
    assert list(of) == [reason.value for reason in Reason]
    expected = {name_of(reason): by_kind[of[reason.value]] for reason in Reason}
    for reason in Reason:
        await told(scene, name_of(reason), situations.of(reason))
    await not_of_a_reason(scene)
    expected |= {
        FRESH: by_kind["not looked at yet"],
        EDITED: by_kind["or an edit was not"],
        DELETED: by_kind["being deleted"],
    }
    objects = {found["metadata"]["name"]: found for found in await scene.mounts()}
    ready = await verdicts.met(api_server.kubeconfig, namespace=scene.namespace)
    health = dict(zip(objects, await verdicts.health(list(objects.values())), strict=True))
    assert {
        name: ("met" if name in ready else "waits", health[name].flux, health[name].argo)
        for name in objects
    } == expected
    for name, found in objects.items():
        check_message(found, health[name])
        assert kstatus.verdict(found).value == health[name].flux, "as our port of it has it"


def check_message(found: Mapping[str, Any], said: verdicts.Health) -> None:
    """Argo CD shows why, in the words of the condition that decides."""
    if said.message in ("Pending deletion", "Waiting for devicemount-operator"):
        return
    conditions = {c["type"]: c["message"] for c in found["status"]["conditions"]}
    whole = conditions.get("Suspended") or conditions["Ready"]
    if "Degraded" in conditions:
        whole += f" {conditions['Degraded']}"
    assert said.message == whole
