# SPDX-License-Identifier: Apache-2.0
"""A profile's YAML file, with the line of every place in it: who mistyped must not have to search.

What YAML would take without a word is refused: a key that is there twice (the last would win), and
aliases (a few lines of them can stand for gigabytes).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

STRING = "tag:yaml.org,2002:str"
DOCUMENT_LIMIT_BYTES = 64 << 10  # the largest of ours has 4 kB
# What PyYAML raises besides its own: for a tag that does not fit (!!bool x), and for depth.
CONSTRUCTION_ERRORS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class DocumentError(ValueError):
    """The text is not a document that we take."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """One parsed file."""

    content: dict[str, Any]
    node: yaml.MappingNode

    def line_of(self, place: Sequence[int | str]) -> int:
        """Return the line of a place, or of the nearest thing around it that is there."""
        node: yaml.Node = self.node
        line = _line(node)
        for step in place:
            below = _below(node, step)
            if below is None:
                break
            key, node = below
            line = _line(key)
        return line


def parse(raw: bytes) -> Document:
    """Parse one mapping. Raises DocumentError."""
    if len(raw) > DOCUMENT_LIMIT_BYTES:
        raise DocumentError(f"is longer than {DOCUMENT_LIMIT_BYTES} bytes", 1)
    try:
        text = raw.decode()
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        for part in _walk(node, set()):
            _check(part)
        content = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise DocumentError(
            f"is no YAML: {error.problem or error.context}", mark.line + 1 if mark else 1
        ) from error
    except DocumentError:
        raise
    except (yaml.YAMLError, *CONSTRUCTION_ERRORS) as error:
        raise DocumentError(f"is no YAML: {error!r}", 1) from error
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        raise DocumentError("is not one profile (a mapping of fields)", 1)
    return Document(content, node)


def _walk(node: yaml.Node | None, seen: set[int]) -> Iterator[yaml.Node]:
    if node is None:
        return
    if id(node) in seen:
        raise DocumentError("has an alias (*name): write it out", _line(node))
    seen.add(id(node))
    yield node
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for part in pair:
                yield from _walk(part, seen)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _walk(part, seen)


def _check(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        node.value.encode()  # an escape can write what is no text
    if not isinstance(node, yaml.MappingNode):
        return
    keys: set[str] = set()
    for key, _ in node.value:
        if key.tag != STRING:
            raise DocumentError(
                "has a field whose name is no word ({{ }} of a template?)", _line(key)
            )
        if key.value in keys:
            raise DocumentError(f"has {key.value!r} twice", _line(key))
        keys.add(key.value)


def _below(node: yaml.Node, step: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    """Return (where it is written, what it is) of a field or an element."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1 if node.start_mark else 1
