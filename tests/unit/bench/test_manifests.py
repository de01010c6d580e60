# SPDX-License-Identifier: Apache-2.0
"""The floor's pod costs the kubelet what a shadow pod costs it."""

from bench.manifests import RESOURCE, floor_pod, target_pod


def test_the_floor_asks_for_one_device_on_the_node_and_no_token() -> None:
    spec = floor_pod("floor", "node2")["spec"]
    assert spec["containers"][0]["resources"]["limits"][RESOURCE] == 1
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (field,) = required["nodeSelectorTerms"][0]["matchFields"]
    assert field == {"key": "metadata.name", "operator": "In", "values": ["node2"]}
    assert spec["automountServiceAccountToken"] is False


def test_the_target_has_no_device() -> None:
    assert "resources" not in target_pod("node1")["spec"]["containers"][0]
