# SPDX-License-Identifier: Apache-2.0
"""What docs/budgets.md says of budgets that select every pod of a namespace."""

import re
from collections.abc import Callable

from cluster.pages import DOCS, blocks
from cluster.world import World, eventually
from devicemount_testbed.api import Object

# On every pod, as a budget without `NotIn` has it.
EVERYTHING = """
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: everything-at-all}
spec: {maxUnavailable: 1, selector: {}}
"""


def test_a_budget_counts_shadow_pods_unless_it_leaves_them_out(world: World) -> None:
    (page,) = blocks(DOCS / "budgets.md")
    apply, manifest = page.script.split("<<'EOF'\n")
    assert apply.strip() == "kubectl apply -f -"
    _replicated(world, "web")
    world.mount("borrowed", _replicated(world, "notebook")).ready()

    # One at a time: of two budgets for one pod Kubernetes counts an arbitrary one anew.
    world.testbed.kubectl("apply", "-n", world.namespace, "-f", "-", input=EVERYTHING)
    _budget(
        world, "everything-at-all", lambda status: "does not implement the scale" in str(status)
    )
    world.testbed.kubectl("delete", "-n", world.namespace, "pdb", "everything-at-all")
    ours = manifest.removesuffix("EOF\n")
    world.testbed.kubectl("apply", "-n", world.namespace, "-f", "-", input=ours)
    _budget(world, "everything-of-ours", lambda status: status.get("disruptionsAllowed") == 1)


def _replicated(world: World, name: str) -> str:
    """Start a Deployment of one pod and return the pod's name."""
    world.testbed.kubectl(
        "create", "deployment", name, "-n", world.namespace, "--image=localhost/busybox:1"
    )  # fmt: skip
    wait = ("wait", "deployment", name, "-n", world.namespace, "--for=condition=Available")
    world.testbed.kubectl(*wait, "--timeout=60s")
    pods = world.testbed.kubectl(
        "get", "pods", "-n", world.namespace, "-l", f"app={name}", "-o", "name"
    ).split()  # fmt: skip
    return re.sub("^pod/", "", pods[0])


def _budget(world: World, name: str, test: Callable[[Object], bool]) -> None:
    path = f"/apis/policy/v1/namespaces/{world.namespace}/poddisruptionbudgets/{name}"
    eventually(
        lambda: test(world.api.call("GET", path).get("status", {})),
        what=f"the budget {name} has counted",
    )
