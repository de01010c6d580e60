# SPDX-License-Identifier: Apache-2.0
"""A pipeline owns a DeviceMount: nothing is left to apply, and whatever it does ends as it says."""

import pytest

from component.operator.pipeline import Pipeline
from component.operator.scene import LOOP, Scene, documents
from devicemount_operator import errors

APPLIES = 20
RESYNCS = 20
RESYNC_S = 0.05


async def settled(pipeline: Pipeline) -> str:
    """Wait until it is healthy and its Event is told; return its resourceVersion."""
    scene = pipeline.scene
    await scene.eventually(pipeline.is_healthy)
    await scene.eventually(lambda: scene.events("Mounted"))
    return str((await scene.call("GET", pipeline.path))["metadata"]["resourceVersion"])


async def test_applied_again_and_again_nothing_is_written(scene: Scene) -> None:
    """Neither by the pipeline nor by an operator that looks at everything many times."""
    odd = {LOOP: "1000m"}  # one device, as a quantity may be written
    pipeline = Pipeline(scene, resources={"limits": odd}, lifetime={"expireAfter": "8h"})
    await scene.running_pod()
    async with scene.finalizer_policy(), scene.operator(resync_s=RESYNC_S):
        await pipeline.apply()
        version = await settled(pipeline)
        assert not await pipeline.drifted()

        async def is_resynced(after: int = scene.resyncs() + RESYNCS) -> bool:
            return scene.resyncs() >= after

        with scene.counted() as writes:
            for _ in range(APPLIES):
                answer = await pipeline.apply()
                assert answer["metadata"]["resourceVersion"] == version
            await scene.eventually(is_resynced)
        assert writes == []
        live = await scene.call("GET", pipeline.path)
        assert live["metadata"]["resourceVersion"] == version
        assert live["spec"] == pipeline.wanted["spec"]
        assert not pipeline.differs(live)


async def test_a_pipeline_from_the_first_apply_to_the_prune(scene: Scene) -> None:
    pipeline = Pipeline(scene)
    async with scene.operator():
        await pipeline.apply()
        await scene.becomes("TargetNotFound")
        assert (await pipeline.health()).flux == "InProgress", "what waits is not failed"
        await scene.running_pod()
        await settled(pipeline)

        pipeline.commit(resources={"limits": {LOOP: 2}})
        await pipeline.apply()
        await scene.eventually(pipeline.is_healthy)
        live = await scene.call("GET", pipeline.path)
        assert sum(len(row["devices"]) for row in live["status"]["targets"]) == 2
        assert not await pipeline.drifted()

        await scene.call("PATCH", pipeline.path, {"spec": {"suspend": True}})  # by hand
        assert not pipeline.differs(await scene.call("GET", pipeline.path)), "no field of its own"
        pipeline.commit(suspend=False)
        await pipeline.apply()
        await scene.eventually(pipeline.is_healthy)
        await scene.call("PATCH", pipeline.path, {"spec": {"suspend": True}})
        assert pipeline.differs(await scene.call("GET", pipeline.path))
        await scene.eventually(lambda: is_suspended(pipeline))
        await pipeline.apply()
        await scene.eventually(pipeline.is_healthy)
        assert not await pipeline.drifted()

        await pipeline.prune()
        await scene.gone(pipeline.path)
    assert await scene.shadows() == []
    assert scene.agent.states == {}, "the devices are free"


async def is_suspended(pipeline: Pipeline) -> bool:
    return (await pipeline.health()).argo == "Suspended"


async def test_what_the_api_server_refuses_is_refused_in_a_dry_run(scene: Scene) -> None:
    pipeline = Pipeline(scene, resources={"limits": {LOOP: "1500m"}})
    with pytest.raises(errors.Invalid, match="parts of a device cannot be asked for"):
        await pipeline.dry_run()


@pytest.mark.parametrize("path", ["tenant/rights.yaml", "tenant/notebook.yaml"])
async def test_an_example_is_what_the_api_server_takes(scene: Scene, path: str) -> None:
    await scene.ensure("/api/v1/namespaces", {"metadata": {"name": "team-a"}})
    for body in documents(f"docs/examples/{path}"):
        name, plural = body["metadata"]["name"], f"{body['kind'].lower()}s"
        group = "api" if "/" not in body["apiVersion"] else "apis"
        where = f"/{group}/{body['apiVersion']}/namespaces/team-a/{plural}/{name}"
        await scene.transport.call(
            "PATCH",
            f"{where}?fieldManager=test&dryRun=All&fieldValidation=Strict",
            body=body,
            content_type="application/apply-patch+yaml",
            timeout_s=10,
        )
