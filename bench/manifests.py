# SPDX-License-Identifier: Apache-2.0
"""The objects that the benchmark posts. Pure.

The floor's pod costs the scheduler and the kubelet what a shadow pod costs them: the same affinity,
requests and limits, and no token volume.
"""

from devicemount_testbed.api import Object

NAMESPACE = "devicemount-bench"
RESOURCE = "testbed.devicemount.io/vcs"
PATHS = ("/dev/vcs", "/dev/vcs1", "/dev/vcsu1", "/dev/vcsa1")
VOLUME = "probe"
CHANGES = "changes"


def floor_pod(name: str, node: str) -> Object:
    """A bare pod that asks for one device on that node."""
    holder = {
        "name": "hold",
        "image": "localhost/pause:1",
        "resources": {
            "requests": {"cpu": "1m", "memory": "32Mi", RESOURCE: 1},
            "limits": {"cpu": "200m", "memory": "32Mi", RESOURCE: 1},
        },
    }
    return _pod(name, node, holder)


def target_pod(node: str) -> Object:
    """A pod without any device whose only process tries every millisecond to open each of them."""
    prober = {
        "name": "prober",
        "image": "localhost/scratch-target:1",
        "command": ["/target", "probe", f"/{VOLUME}/{CHANGES}", *PATHS],
        "volumeMounts": [{"name": VOLUME, "mountPath": f"/{VOLUME}"}],
    }
    pod = _pod(f"target-{node}", node, prober)
    pod["spec"]["volumes"] = [{"name": VOLUME, "emptyDir": {}}]
    return pod


def mount(name: str, target: str) -> Object:
    """A DeviceMount of one device for the target."""
    return {
        "apiVersion": "devicemount.io/v1alpha1",
        "kind": "DeviceMount",
        "metadata": {"name": name},
        "spec": {"target": {"podName": target}, "resources": {"limits": {RESOURCE: 1}}},
    }


def _pod(name: str, node: str, container: Object) -> Object:
    on_node = {"key": "metadata.name", "operator": "In", "values": [node]}
    required = {"nodeSelectorTerms": [{"matchFields": [on_node]}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}
            },
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        },
    }
