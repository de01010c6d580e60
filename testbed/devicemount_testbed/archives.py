# SPDX-License-Identifier: Apache-2.0
"""Writes the image archives that containerd and Docker load (the form of `docker save`).

The same content gives the same bytes, so that an unchanged image is not loaded again.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class File:
    """An executable file of an image."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    """An empty directory that everybody may write to."""

    path: str


def write_archive(
    path: Path,
    *,
    reference: str,
    entries: Sequence[File | Link | Directory],
    command: Sequence[str],
) -> None:
    """Write an image of one layer."""
    layer = _layer(entries)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": list(command), "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + _sha256(layer)]},
        }
    ).encode()
    config_name = _sha256(config) + ".json"
    manifest = [{"Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"]}]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        _add_file(archive, config_name, config, 0o644)
        _add_file(archive, "layer.tar", layer, 0o644)
        _add_file(archive, "manifest.json", json.dumps(manifest).encode(), 0o644)


def copy_archive(source: Path, target: Path, *, reference: str) -> None:
    """Write the archive again with that as the image's only name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".draft")
    with tarfile.open(source) as old, tarfile.open(draft, "w") as new:
        for member in old:
            if member.name == "manifest.json":
                (image,) = json.load(old.extractfile(member))  # type: ignore[arg-type]
                content = json.dumps([{**image, "RepoTags": [reference]}]).encode()
                _add_file(new, member.name, content, 0o644)
            elif member.name != "repositories":  # the same for Docker before 1.10
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
    draft.replace(target)


def _layer(entries: Sequence[File | Link | Directory]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in entries:
            match entry:
                case File(path=path, content=content):
                    _add_file(archive, path, content, 0o755)
                case Link(path=path, target=target):
                    archive.addfile(_member(path, kind=tarfile.SYMTYPE, link=target))
                case Directory(path=path):
                    archive.addfile(_member(path, kind=tarfile.DIRTYPE, mode=0o1777))
    return buffer.getvalue()


def _add_file(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    member = _member(name, kind=tarfile.REGTYPE, mode=mode)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _member(name: str, *, kind: bytes, mode: int = 0o777, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)  # owner root, modification time 0
    member.type = kind
    member.mode = mode
    member.linkname = link
    return member


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
