# SPDX-License-Identifier: Apache-2.0
"""The CRD is what the models say, bounded and described everywhere, and its YAML is YAML."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from devicemount_operator.api import crd
from devicemount_operator.api.v1alpha1 import DeviceMount

ROOT = Path(__file__).parents[4]
CRD = crd.crd()
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_the_checked_in_file_is_what_the_models_make(capsys: pytest.CaptureFixture[str]) -> None:
    crd.main()
    assert (ROOT / "crds" / "devicemounts.yaml").read_text() == capsys.readouterr().out


def test_the_file_reads_back_as_the_same_object() -> None:
    assert yaml.safe_load((ROOT / "crds" / "devicemounts.yaml").read_text()) == CRD


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a": [], "b": {}}, id="empty collections"),
        pytest.param([[1, 2], {"x": None}], id="lists in lists"),
        pytest.param(
            {"a/b": "yes", "c": "1: #x\n\\d", "d": True}, id="strings that YAML would misread"
        ),
    ],
)
def test_written_yaml_reads_back(value: object) -> None:
    assert yaml.safe_load(crd.to_yaml(value)) == value


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every field below a schema with its path."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield f"{path}[]", schema[key]
            yield from fields(schema[key], f"{path}[]")


OURS = {path: f for path, f in fields(SCHEMA) if path.startswith((".spec", ".status"))}


@pytest.mark.parametrize("path", OURS)
def test_every_field_is_described_and_bounded(path: str) -> None:
    field = OURS[path]
    if not path.endswith("[]"):
        assert field["description"].endswith("."), "a sentence for kubectl explain"
    match field.get("type"):
        case "string":
            assert "enum" in field or "maxLength" in field or field.get("format") == "date-time"
        case "array":
            assert "maxItems" in field
        case "object" if "additionalProperties" in field:
            assert "maxProperties" in field
    assert "title" not in field
    assert "$ref" not in field
    assert "anyOf" not in field


def test_the_fields_are_those_that_work() -> None:
    spec = [path for path in OURS if path.startswith(".spec")]
    assert spec == [
        ".spec",
        ".spec.target",
        ".spec.target.podName",
        ".spec.target.selector",
        ".spec.target.selector.matchLabels",
        ".spec.target.selector.matchLabels[]",
        ".spec.target.selector.matchExpressions",
        ".spec.target.selector.matchExpressions[]",
        ".spec.target.selector.matchExpressions[].key",
        ".spec.target.selector.matchExpressions[].operator",
        ".spec.target.selector.matchExpressions[].values",
        ".spec.target.selector.matchExpressions[].values[]",
        ".spec.target.maxPods",
        ".spec.target.container",
        ".spec.resources",
        ".spec.resources.limits",
        ".spec.resources.limits[]",
        ".spec.reservation",
        ".spec.reservation.schedulerName",
        ".spec.reservation.runtimeClassName",
        ".spec.reservation.priorityClassName",
        ".spec.reservation.annotations",
        ".spec.reservation.annotations[]",
        ".spec.reservation.acceptEnvFile",
        ".spec.unmount",
        ".spec.unmount.whenBusy",
        ".spec.unmount.gracePeriodSeconds",
        ".spec.unmount.includeMainProcess",
        ".spec.lifetime",
        ".spec.lifetime.expireAfter",
        ".spec.lifetime.deleteWithTarget",
        ".spec.suspend",
    ]
    assert OURS[".spec.unmount.whenBusy"]["enum"] == ["Wait", "Terminate"]


def test_status_is_a_subresource_that_says_not_looked_at_yet() -> None:
    version = CRD["spec"]["versions"][0]
    assert version["subresources"] == {"status": {}}
    assert SCHEMA["properties"]["status"]["default"] == {"observedGeneration": -1}
    assert OURS[".status.targets"]["x-kubernetes-list-map-keys"] == ["podUID"]
    assert OURS[".status.conditions"]["x-kubernetes-list-map-keys"] == ["type"]


def test_kubectl_get_shows_what_people_look_for() -> None:
    columns = CRD["spec"]["versions"][0]["additionalPrinterColumns"]
    names = [column["name"] for column in columns]
    assert names == ["Target", "Container", "Node", "Devices", "Ready", "Reason", "Age"]
    assert CRD["spec"]["names"]["shortNames"] == ["dm"]


def dm(limits: dict[str, object]) -> dict[str, Any]:
    meta = {"name": "a", "namespace": "b", "uid": "c"}
    return {"metadata": meta, "spec": {"target": {"podName": "p"}, "resources": {"limits": limits}}}


@pytest.mark.parametrize("count", [1, "1", 1 << 20, "1048576"])
def test_counts_may_be_spelled_as_resources_are(count: object) -> None:
    parsed = DeviceMount.model_validate(dm({"a.io/b": count}))
    assert parsed.spec.resources.limits == {"a.io/b": int(str(count))}


@pytest.mark.parametrize("count", [0, -1, 0.5, "0.5", "500m", (1 << 20) + 1, ""])
def test_counts_that_are_no_devices_are_refused(count: object) -> None:
    with pytest.raises(ValidationError):
        DeviceMount.model_validate(dm({"a.io/b": count}))


def test_what_a_newer_crd_adds_is_ignored() -> None:
    newer = dm({"a.io/b": 1})
    newer["spec"]["lifetime"] = {"expireAfter": "8h"}
    assert DeviceMount.model_validate(newer).spec.target.pod_name == "p"
