# SPDX-License-Identifier: Apache-2.0
"""What the API server's validation by a structural schema finds wrong, as far as we use it."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

KINDS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
}
BOUNDS = {"maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties"}


def faults(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """Yield what is wrong, with the path of the field."""
    if not isinstance(value, KINDS[schema["type"]]):
        yield f"{path}: no {schema['type']}"
        return
    for bound in BOUNDS & schema.keys():
        too_long = len(value) > schema[bound] if bound.startswith("max") else False
        if too_long or (bound.startswith("min") and len(value) < schema[bound]):
            yield f"{path}: {bound} {schema[bound]}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: {value!r} is not like {schema['pattern']}"
    if "minimum" in schema and value < schema["minimum"]:
        yield f"{path}: below {schema['minimum']}"
    if "maximum" in schema and value > schema["maximum"]:
        yield f"{path}: above {schema['maximum']}"
    if schema.get("format") == "date-time":
        datetime.fromisoformat(value)
    yield from _inside(schema, value, path)


def _inside(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    match value:
        case dict():
            properties = schema.get("properties", {})
            for name in schema.get("required", ()):
                if name not in value:
                    yield f"{path}.{name}: required"
            for name, item in value.items():
                inner = properties.get(name) or schema.get("additionalProperties")
                if inner is None:
                    yield f"{path}.{name}: unknown"
                else:
                    yield from faults(inner, item, f"{path}.{name}")
        case list():
            keys = schema.get("x-kubernetes-list-map-keys", ())
            names = [tuple(item.get(key) for key in keys) for item in value] if keys else []
            if len(set(names)) < len(names):
                yield f"{path}: an entry twice"
            for number, item in enumerate(value):
                yield from faults(schema["items"], item, f"{path}[{number}]")
