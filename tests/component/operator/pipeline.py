# SPDX-License-Identifier: Apache-2.0
"""A GitOps pipeline: it applies what a repository says, sees drift, waits for health and prunes."""

from copy import deepcopy
from typing import Any, Final

from component.operator import verdicts
from component.operator.scene import Scene
from component.operator.verdicts import Health
from devicemount_operator.transport import JsonObject

MANAGER: Final = "kustomize-controller"
APPLY: Final = "application/apply-patch+yaml"
HEALTHY: Final = ("Current", "Healthy")


class Pipeline:
    """One DeviceMount in a repository."""

    def __init__(self, scene: Scene, **spec: Any) -> None:
        self.scene = scene
        self.wanted = scene.mount_body("dm")
        self.wanted["spec"].update(spec)

    @property
    def path(self) -> str:
        return self.scene.mount_path("dm")

    def commit(self, **spec: Any) -> None:
        """Change the repository."""
        self.wanted = deepcopy(self.wanted)
        self.wanted["spec"].update(spec)

    async def apply(self) -> JsonObject:
        """Make it so by server-side apply, as Flux and Argo CD do."""
        return await self._patch("")

    async def dry_run(self) -> JsonObject:
        """Return what an apply would make of it."""
        return await self._patch("&dryRun=All")

    async def drifted(self) -> bool:
        """Tell whether an apply would change anything at all, as Flux finds out."""
        return await self.dry_run() != await self.scene.call("GET", self.path)

    def differs(self, live: JsonObject) -> bool:
        """Tell whether a comparison of what is written with what is there shows a difference."""
        return not _contains(live, self.wanted)

    async def health(self) -> Health:
        (found,) = await verdicts.health([await self.scene.call("GET", self.path)])
        return found

    async def is_healthy(self) -> bool:
        found = await self.health()
        return (found.flux, found.argo) == HEALTHY

    async def prune(self) -> None:
        await self.scene.delete(self.path)

    async def _patch(self, more: str) -> JsonObject:
        return await self.scene.transport.call(
            "PATCH",
            f"{self.path}?fieldManager={MANAGER}&force=true{more}",
            body=self.wanted,
            content_type=APPLY,
            timeout_s=10,
        )


def _contains(live: Any, wanted: Any) -> bool:
    match wanted:
        case dict():
            return all(name in live and _contains(live[name], wanted[name]) for name in wanted)
        case _:
            return bool(live == wanted)
