# SPDX-License-Identifier: Apache-2.0
"""spec.lifetime against the real API server: devices go back when their time is over, and a mount
goes with its target."""

from typing import Any

import pytest

from component.operator.scene import LEASE, Scene
from devicemount_agent_api.v1 import agent_pb2
from devicemount_operator import errors
from devicemount_operator.decide import lifetime

HURRY_S = 0.0


async def applied(scene: Scene, **spec: Any) -> None:
    body = scene.mount_body("dm")
    body["spec"]["lifetime"] = spec
    await scene.call("POST", scene.mount_path(""), body)


async def leads_for_a_while(scene: Scene) -> bool:
    """Tell whether the operator has renewed the Lease that it took before its first pass."""
    lease = await scene.get(LEASE)
    return lease is not None and lease["spec"]["renewTime"] > lease["spec"]["acquireTime"]


async def is_expired(scene: Scene) -> dict[str, Any] | None:
    mount = await scene.get_mount()
    conditions = ((mount or {}).get("status") or {}).get("conditions") or ()
    said = {c["type"]: c["reason"] for c in conditions if c["status"] == "True"}
    return mount if said == {"Suspended": "Expired"} else None


REFUSED = {
    "8": "should match",
    "-8h": "should match",
    "1d": "should match",
    "999ms": "a duration from 1s to 87600h",
    "87601h": "a duration from 1s to 87600h",
}


async def test_only_durations_within_bounds_are_taken_and_stored_as_written(scene: Scene) -> None:
    for duration, said in REFUSED.items():
        with pytest.raises(errors.Invalid, match=said):
            await applied(scene, expireAfter=duration)
    for duration in ("8h", "1h30m", "90s", "1500ms", "87600h"):
        await applied(scene, expireAfter=duration)
        mount = await scene.get_mount()
        assert mount is not None
        assert mount["spec"]["lifetime"] == {"expireAfter": duration}
        await scene.unmount()


async def test_a_mount_expires_stays_so_over_a_restart_and_mounts_again_when_edited(
    scene: Scene,
) -> None:
    await scene.running_pod()
    async with scene.operator():
        await applied(scene, expireAfter="1s")
        await scene.eventually(lambda: is_expired(scene))
        assert await scene.shadows() == []
        assert scene.agent.states == {}
        mount = await scene.get_mount()
        assert mount is not None
        assert mount["status"]["lifetime"]["expires"] > mount["status"]["lifetime"]["since"]
        (event,) = await scene.events("Expired")
        assert event["type"] == "Normal"
    async with scene.operator():
        applies = len(scene.agent.applies)
        with scene.counted() as writes:
            await scene.eventually(lambda: leads_for_a_while(scene))
        assert writes == []
        assert len(scene.agent.applies) == applies
        change = {"spec": {"lifetime": {"expireAfter": "8h"}}}
        await scene.call("PATCH", scene.mount_path("dm"), change)
        await scene.becomes("Mounted")


async def test_a_mount_goes_with_its_target_and_only_with_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "RETURN_S", HURRY_S)
    await scene.running_pod()
    async with scene.operator():
        await applied(scene, deleteWithTarget=True)
        await scene.becomes("Mounted")
        body = scene.mount_body("never", pod="nobody")
        body["spec"]["lifetime"] = {"deleteWithTarget": True}
        await scene.call("POST", scene.mount_path(""), body)
        await scene.becomes("TargetNotFound", "never")
        scene.agent.say_of_all(agent_pb2.TARGET_ENDED)
        await scene.delete(scene.pod_path("target"), grace_s=0)
        await scene.gone(scene.mount_path("dm"))
        assert await scene.events("DeletedWithTarget")
        assert await scene.shadows() == []
        assert await scene.reason("never") == "TargetNotFound"
