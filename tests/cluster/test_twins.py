# SPDX-License-Identifier: Apache-2.0
"""A device by a DeviceMount is what it would be in the pod's own limits, in every respect.

Pod `born` has the devices from the start, pod `given` gets them by DeviceMounts. Both see the same
nodes, which two replicas share: what they see of them must be the same to the last bit.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.moffett import free_major
from cluster.plugins import allocatable, running_plugin
from cluster.world import Pod, World, eventually
from devicemount_testbed.api import Object

DOMAIN = "twins.devicemount.io"
PLUGGED = {"r": 1, "w": 2, "rw": 3, "mrw": 4, "named": 5, "linked": 6, "one": 7, "two": 8}
CONFIG: Object = {
    "resources": [
        {"name": f"{DOMAIN}/{name}", "replicas": 2, **fields}
        for name, fields in {
            "r": {"nodes": {"paths": ["/dev/twin-r"]}, "access": "r"},
            "w": {"nodes": {"paths": ["/dev/twin-w"]}, "access": "w"},
            "rw": {"nodes": {"paths": ["/dev/twin-rw"]}},
            "mrw": {"nodes": {"paths": ["/dev/twin-mrw"]}, "access": "mrw"},
            "named": {"nodes": {"glob": "/dev/twin-name*"}, "containerPath": "/dev/twins/{name}"},
            "linked": {"nodes": {"paths": ["/dev/twin-link"]}},
            "group": {"groups": {"pair": ["/dev/twin-one", "/dev/twin-two"]}},
        }.items()
    ]
}
RESOURCES = [one["name"] for one in CONFIG["resources"]]
SHARED = f"{DOMAIN}/shared"
CONFIG["resources"].append(
    {"name": SHARED, "replicas": 8, "nodes": {"paths": ["/dev/twin-rw"]}}  # 33:44, 0640
)
PATHS = (
    "/dev/twin-r /dev/twin-w /dev/twin-rw /dev/twin-mrw /dev/twins/twin-named /dev/twin-link "
    "/dev/twin-one /dev/twin-two"
)
# For each path what a look says, and what opening it for reading, writing and both says. A number
# that no driver has answers "No such device or address" where the filter lets it pass.


def looking_at(paths: str) -> str:
    return (
        f"for p in {paths}; do stat -c '%n %F %t:%T %a %u:%g' $p;"
        " (: < $p) 2>&1; (: >> $p) 2>&1; (: <> $p) 2>&1; done | sed 's/^.*can.t [a-z]* //'"
    )


@pytest.fixture
def devices(world: World, node: str) -> Iterator[str]:
    """Make the nodes, with an owner and a mode that no default has, and run a plugin for them."""
    major = free_major()
    makes = [
        f"mknod -m 0640 /dev/twin-{name} c {major} {minor}; chown 33:44 /dev/twin-{name}"
        for name, minor in PLUGGED.items()
    ]
    script = "; ".join(["rm -f /dev/twin-*", *makes, "ln -s twin-linked /dev/twin-link"])
    try:
        assert world.testbed.exec(node, ["sh", "-c", script]).returncode == 0
        with running_plugin(world.testbed, world.api, node=node, config=CONFIG):
            eventually(
                lambda: all(
                    allocatable(world.api, node, name) == (8 if name == SHARED else 2)
                    for name in (*RESOURCES, SHARED)
                ),
                what="the node offers the twins' devices",
            )
            yield node
    finally:
        world.testbed.exec(node, ["sh", "-c", "rm -f /dev/twin-*"])


def test_a_twin_sees_no_difference(world: World, devices: str) -> None:
    born = world.pod("born", node=devices, limits=dict.fromkeys(RESOURCES, 1))
    given = world.pod("given", node=devices)
    mounts = [
        world.mount(resource.rpartition("/")[2], given, resource=resource) for resource in RESOURCES
    ]
    for mount in mounts:
        mount.ready()

    def look(pod: Pod) -> list[str]:
        return pod.sh(looking_at(PATHS)).splitlines()

    assert look(given) == look(born)
    assert len(look(born)) == 4 * len(PLUGGED)


USERS: dict[str, Object] = {
    "user": {"securityContext": {"runAsUser": 1000}},
    "groups": {"securityContext": {"runAsUser": 1000, "supplementalGroups": [44]}},
    "own-users": {"hostUsers": False},
}


@pytest.mark.parametrize("node", ["node2"])
def test_a_twin_of_another_user_sees_no_difference(world: World, devices: str) -> None:
    """Nor in a user namespace, but for the owner: a node of the start is nobody's there."""

    def twins(name: str) -> list[list[str]]:
        born = world.pod(f"born-{name}", node=devices, limits={SHARED: 1}, **USERS[name])
        given = world.pod(f"given-{name}", node=devices, **USERS[name])
        world.mount(name, given, resource=SHARED).ready()
        looks = [pod.sh(looking_at("/dev/twin-rw")).splitlines() for pod in (born, given)]
        assert len(looks[0]) == 4, looks
        return looks

    with ThreadPoolExecutor(len(USERS)) as threads:
        seen = dict(zip(USERS, threads.map(twins, USERS), strict=True))
    for name in ("user", "groups"):
        born, given = seen[name]
        assert given == born
    born, given = seen["own-users"]
    assert born[0].endswith(" 640 65534:65534")
    assert given[0].endswith(" 640 33:44")
    assert given[0].rpartition(" ")[0] == born[0].rpartition(" ")[0]
