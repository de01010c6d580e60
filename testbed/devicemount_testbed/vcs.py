# SPDX-License-Identifier: Apache-2.0
"""The testbed's character devices, as the demonstration and the tests ask about them."""

from devicemount_testbed.api import Api

VCS = "testbed.devicemount.io/vcs"
NUMBERS = {"vcs": (7, 0), "vcs1": (7, 1), "vcsu1": (7, 65), "vcsa1": (7, 129)}

# For a shell in a container: prints the names of the devices that may be opened there by number,
# wherever their own files are.
OPENABLE = "; ".join(
    f"[ -e /tmp/{name} ] || mknod /tmp/{name} c {major} {minor}; "
    f"if true 2>/dev/null < /tmp/{name}; then echo {name}; fi"
    for name, (major, minor) in NUMBERS.items()
)


def free_devices(api: Api, node: str, resource: str = VCS) -> int:
    """Return the node's allocatable devices less the requests of its unfinished pods."""
    allocatable = api.call("GET", f"/api/v1/nodes/{node}")["status"]["allocatable"]
    pods = api.call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")["items"]
    used = sum(
        int(container["resources"].get("requests", {}).get(resource, 0))
        for pod in pods
        if pod["status"].get("phase") not in ("Succeeded", "Failed")
        for container in pod["spec"]["containers"]
    )
    return int(allocatable.get(resource, 0)) - used
