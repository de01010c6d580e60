# SPDX-License-Identifier: Apache-2.0
"""A second device plugin of ours on one node, from the file shipped for `kubectl create`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster.world import SYSTEM, eventually
from devicemount_testbed.api import Api, Object, condition, pod_path
from devicemount_testbed.cluster import Testbed

MANIFEST = Path(__file__).parents[2] / "manifests/moffett-device-plugin/moffett-device-plugin.yaml"
CONFIG_FILE = "moffett-spu.yaml"
NAMESPACE = "kube-system"
DAEMON_SET = "daemonset/moffett-devicemount-plugin"
PODS = f"{pod_path(NAMESPACE)}?labelSelector=app.kubernetes.io/instance%3Dmoffett"
DEADLINE_S = 60.0
IMAGE_OF = f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/devicemount-plugin"


@contextmanager
def running_plugin(
    testbed: Testbed, api: Api, *, node: str, config: Object, sys: str = "/sys"
) -> Iterator[None]:
    """Run the plugin from when its pod runs until it is gone; `sys` is what it takes for /sys.

    What it offers was not offered before: a node's status lags some seconds behind the kubelet.
    """
    resources = [resource["name"] for resource in config["resources"]]
    eventually(
        lambda: not any(allocatable(api, node, name) for name in resources),
        what=f"{node} offers none of {resources}",
    )
    text = yaml.safe_dump_all(objects_of(api, node=node, config=config, sys=sys))
    try:
        testbed.kubectl("create", "-f", "-", input=text)
        eventually(lambda: _runs(api), what="the plugin runs", deadline_s=DEADLINE_S)
        yield
    finally:
        testbed.kubectl("delete", "-f", "-", "--ignore-not-found", "--wait=false", input=text)
        eventually(lambda: not _pods(api), what="the plugin is gone", deadline_s=DEADLINE_S)


def allocatable(api: Api, node: str, resource: str) -> int:
    status = api.call("GET", f"/api/v1/nodes/{node}")["status"]
    return int(status["allocatable"].get(resource, "0"))


def identity(api: Api) -> tuple[str, str, int]:
    """Return UID, container id and restart count of the plugin's only pod."""
    (pod,) = _pods(api)
    (status,) = pod["status"]["containerStatuses"]
    return pod["metadata"]["uid"], status["containerID"], status["restartCount"]


def roll_out_anew(testbed: Testbed) -> None:
    """Begin what an update of the DaemonSet does."""
    testbed.kubectl("-n", NAMESPACE, "rollout", "restart", DAEMON_SET)


def is_replaced(api: Api, former: tuple[str, str, int]) -> bool:
    """Tell whether another pod is the plugin's only one, and registered, which is its readiness."""
    pods = _pods(api)
    return [pod["metadata"]["uid"] == former[0] for pod in pods] == [False] and condition(
        pods[0], "Ready"
    ).get("status") == "True"


def objects_of(api: Api, *, node: str, config: Object, sys: str) -> list[Object]:
    """Return the manifest as it is, but for node, image, configuration and the place of /sys."""
    objects: list[Object] = list(yaml.safe_load_all(MANIFEST.read_text()))
    kinds: dict[str, Any] = {one["kind"]: one for one in objects}
    kinds["ConfigMap"]["data"][CONFIG_FILE] = yaml.safe_dump(config)
    pod = kinds["DaemonSet"]["spec"]["template"]["spec"]
    pod["nodeSelector"]["kubernetes.io/hostname"] = node
    deployed = api.call("GET", IMAGE_OF)["spec"]["template"]["spec"]
    pod["containers"][0]["image"] = deployed["containers"][0]["image"]
    for volume in pod["volumes"]:
        path = volume.get("hostPath", {}).get("path", "")
        if path.startswith("/sys/"):
            volume["hostPath"]["path"] = sys + path.removeprefix("/sys")
    return objects


def _pods(api: Api) -> list[Object]:
    return list(api.call("GET", PODS)["items"])


def _runs(api: Api) -> bool:
    statuses = [s for pod in _pods(api) for s in pod["status"].get("containerStatuses", ())]
    return bool(statuses) and all("running" in status["state"] for status in statuses)
