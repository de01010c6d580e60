# SPDX-License-Identifier: Apache-2.0
"""A whole status made to fit into an object: bounds of single texts do not bound all of them.

The API server takes an object of 1.5 MiB; spec, the fields' managers and the last applied
configuration need room too. What is left out first is what programs can do without; the message of
the target says that it is.
"""

import json
from collections.abc import Callable
from typing import Final

from devicemount_operator.api import v1alpha1 as api
from devicemount_operator.decide.text import clip

MAX_BYTES: Final = 1 << 20
_ESCAPED: Final = "<>&"  # six bytes each as the API server stores them
_FEW_DEVICES: Final = 16
_FEW_HOLDERS: Final = 4
_SHORT: Final = 256  # characters of a message
_NOTE: Final = " Not listed, since all of it is too long: "

_Shorten = Callable[[api.TargetStatus], api.TargetStatus]


def fitted(status: api.Status, *, max_bytes: int = MAX_BYTES) -> api.Status:
    """Return the status with as much detail as has room."""
    if _has_few_texts(status):
        return status
    for shorten in _STEPS:
        if size_bytes(status) <= max_bytes:
            break
        rows = tuple(shorten(row) for row in status.targets)
        status = status.model_copy(update={"targets": rows})
    return status


def size_bytes(status: api.Status) -> int:
    """Return how many bytes the API server needs for it at most."""
    document = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    text = json.dumps(document, ensure_ascii=False)
    return len(text.encode()) + 5 * sum(map(text.count, _ESCAPED))


def _has_few_texts(status: api.Status) -> bool:
    """Say that nothing needs to be measured: so it is for every ordinary mount."""
    texts = sum(
        1
        + len(row.holders)
        + sum(1 + len(device.nodes) + len(device.mounts) for device in row.devices)
        for row in status.targets
    )
    return texts <= _FEW_DEVICES


def _without_files(row: api.TargetStatus) -> api.TargetStatus:
    devices = tuple(d.model_copy(update={"nodes": (), "mounts": ()}) for d in row.devices)
    return _cut(row, "files", devices=devices) if devices else row


def _with_few(row: api.TargetStatus) -> api.TargetStatus:
    few = {"devices": row.devices[:_FEW_DEVICES], "holders": row.holders[:_FEW_HOLDERS]}
    is_cut = len(row.devices) > _FEW_DEVICES or len(row.holders) > _FEW_HOLDERS
    return _cut(row, "some devices and processes", **few) if is_cut else row


def _bare(row: api.TargetStatus) -> api.TargetStatus:
    short = row.model_copy(update={"message": clip(row.message or "", _SHORT)})
    return _cut(short, "devices and processes", devices=(), holders=())


def _cut(row: api.TargetStatus, what: str, **fields: object) -> api.TargetStatus:
    said = (row.message or "").partition(_NOTE)[0]
    note = f"{_NOTE}{what}."
    message = clip(said, api.MAX_MESSAGE - len(note)) + note
    return row.model_copy(update={**fields, "message": message})


_STEPS: Final[tuple[_Shorten, ...]] = (_without_files, _with_few, _bare)
