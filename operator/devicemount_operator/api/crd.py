# SPDX-License-Identifier: Apache-2.0
"""The CustomResourceDefinition, made from the models: `python -m devicemount_operator.api.crd >
crds/devicemounts.yaml`.

pydantic's JSON schema is nearly a structural schema: references are put in place, titles and
defaults go, an optional field loses its null branch. A test compares the checked-in file with what
this prints. The YAML is written here, since it needs no more than mappings, lists and scalars, and
the operator's image needs no YAML library.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from devicemount_operator.api import v1alpha1

Schema = dict[str, Any]

# What pydantic says and a structural schema does not know or Kubernetes spells otherwise.
_DROPPED = frozenset({"title", "default", "$defs", "propertyNames"})
_COLUMNS = (
    ("Target", ".spec.target['podName','selector']"),
    ("Container", ".status.targets[0].containerName"),
    ("Node", ".status.targets[0].nodeName"),
    ("Devices", ".status.targets[0].devices[*].id"),
    ("Ready", ".status.ready"),
    ("Reason", ".status.conditions[?(@.type=='Ready')].reason"),
)


def crd() -> Schema:
    """Return the whole CustomResourceDefinition."""
    names = {
        "kind": v1alpha1.KIND,
        "listKind": f"{v1alpha1.KIND}List",
        "plural": v1alpha1.PLURAL,
        "singular": v1alpha1.KIND.lower(),
        "shortNames": ["dm"],
    }
    version = {
        "name": v1alpha1.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            *({"name": name, "type": "string", "jsonPath": path} for name, path in _COLUMNS),
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
        "schema": {"openAPIV3Schema": _device_mount()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{v1alpha1.PLURAL}.{v1alpha1.GROUP}"},
        "spec": {
            "group": v1alpha1.GROUP,
            "names": names,
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def _device_mount() -> Schema:
    generated = v1alpha1.DeviceMount.model_json_schema(by_alias=True)
    schema = _structural(generated, generated["$defs"])
    schema["required"] = ["spec"]
    properties = schema["properties"]
    schema["properties"] = {
        "apiVersion": {"type": "string", "description": "Version of this representation."},
        "kind": {"type": "string", "description": v1alpha1.KIND},
        "metadata": {"type": "object"},
        "spec": properties["spec"],
        "status": {**properties["status"], "default": {"observedGeneration": -1}},
    }
    return schema


def _structural(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Return the schema as Kubernetes wants it; a field's description goes before its model's."""
    if "$ref" in schema:
        referred = definitions[schema["$ref"].rpartition("/")[2]]
        own = {key: value for key, value in schema.items() if key != "$ref"}
        return _structural({**referred, **own}, definitions)
    if (inner := _without_null(schema)) is not None:
        return _structural(inner, definitions)
    result = {key: value for key, value in schema.items() if key not in _DROPPED}
    if "const" in result:
        result["enum"] = [result.pop("const")]
    if result.get("format") is None and result.get("type") == "integer":
        result["format"] = "int64"
    if "properties" in result:
        result["properties"] = {
            name: _structural(value, definitions) for name, value in result["properties"].items()
        }
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), dict):
            result[key] = _structural(result[key], definitions)
    return result


def _without_null(schema: Schema) -> Schema | None:
    """Return an optional field's schema without its null branch, or None if it is not optional."""
    branches = [b for b in schema.get("anyOf", ()) if b != {"type": "null"}]
    if len(branches) != 1:
        return None
    outer = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**branches[0], **outer}


def to_yaml(value: Any) -> str:
    """Write mappings, lists and scalars as block YAML; a JSON string is a YAML string too."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _entry(f"{_key(key)}:", item)
    elif isinstance(value, list) and value:
        for item in value:
            first, *rest = _lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield json.dumps(value, ensure_ascii=False)


def _entry(head: str, item: Any) -> Iterator[str]:
    if isinstance(item, dict | list) and item:
        yield head
        yield from (f"  {line}" for line in _lines(item))
    else:
        yield f"{head} {json.dumps(item, ensure_ascii=False)}"


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() else json.dumps(key)


def main() -> None:
    """Print the file of crds/."""
    sys.stdout.write("# SPDX-License-Identifier: Apache-2.0\n")
    sys.stdout.write(
        "# Generated from operator/devicemount_operator/api/v1alpha1.py by `make crds`.\n"
    )
    sys.stdout.write(to_yaml(crd()))


if __name__ == "__main__":
    main()
