# SPDX-License-Identifier: Apache-2.0
"""What the stand-in plugins say: vendors' answers (vendor_answers.py), for the ids that were asked.

A stand-in has the ids of a case. Asked for all of them it answers what the file says to the letter,
asked for some, what of it belongs to those.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devicemount_node_api import deviceplugin_pb2 as pb
from vendor_answers import DATA, MAIN, Case, Entry, cases

Json = dict[str, Any]
Marks = Mapping[str, tuple[str, ...]]  # by which words of an answer an id is known, besides itself


@dataclass(frozen=True)
class RefusedRequest:
    """A request that a vendor's plugin refuses."""

    file: str
    name: str
    resource: str
    ids: tuple[str, ...]
    error: str

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


def case(file: str, name: str = MAIN) -> Case:
    """Return the case of that name: `main`, or one of the file's variants."""
    return next(one for one in cases() if (one.vendor, one.variant) == (file, name))


def refused_requests() -> list[RefusedRequest]:
    found = []
    for path in sorted(DATA.glob("*.json")):
        whole = json.loads(path.read_text())
        found += [
            RefusedRequest(
                path.stem,
                said["name"],
                whole["resource"],
                tuple(said["example_request"]["device_ids"]),
                said["allocate_error"],
            )
            for said in whole.get("variants", ())
            if "allocate_error" in said
        ]
    return found


def answer(entry: Entry, ids: list[str], marks: Marks) -> pb.ContainerAllocateResponse:
    """Return what the plugin answers for these ids of the entry."""
    said = entry if set(ids) == set(entry.ids) else _part_of(entry, ids, marks)
    return pb.ContainerAllocateResponse.FromString(said.response())


def _part_of(entry: Entry, ids: list[str], marks: Marks) -> Entry:
    def words(of: str) -> tuple[str, ...]:
        return (of, of.partition("::")[0], *marks.get(of, ()))

    wanted = {word for one in ids for word in words(one)}
    foreign = {word for one in entry.ids for word in words(one)} - wanted

    def is_ours(text: str) -> bool:
        return not any(text == word or text.endswith(("/" + word, "=" + word)) for word in foreign)

    def ours(listed: str) -> str:
        return ",".join(item for item in listed.split(",") if is_ours(item))

    whole = entry.answer
    part = {
        "envs": {name: ours(value) for name, value in whole["envs"].items()},
        "mounts": [m for m in whole["mounts"] if is_ours(m["container_path"])],
        "devices": [d for d in whole["devices"] if is_ours(d["container_path"])],
        "annotations": {name: ours(value) for name, value in whole["annotations"].items()},
        "cdi_devices": [name for name in whole["cdi_devices"] if is_ours(name)],
    }
    return Entry(entry.resource, tuple(ids), part)
