# SPDX-License-Identifier: Apache-2.0
"""Builds the images of a checkout from its Dockerfiles, on a base made by debootstrap.

An image is built again only when the files that its Dockerfile copies, or the base, change.
"""

import hashlib
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devicemount_testbed import buildah
from devicemount_testbed.archives import copy_archive
from devicemount_testbed.commands import run_with_progress
from devicemount_testbed.errors import NoRepository, UnreadableDockerfile
from devicemount_testbed.layout import DATA, Layout
from devicemount_testbed.report import say
from devicemount_testbed.stock_images import archive_path

BASE_IMAGE = "localhost/devicemount-base:1"
BASE_RECIPE = ("base.sh", "Dockerfile.base")
NOT_SOURCE = ("__pycache__",)


@dataclass(frozen=True, slots=True)
class Image:
    """One image of the checkout."""

    reference: str
    dockerfile: str
    target: str

    def release_name(self, version: str) -> str:
        """Return the name that the manifests have: localhost/devicemount-agent:0.1.0."""
        return f"{self.reference.rpartition(':')[0]}:{version}"


IMAGES = (
    Image(
        "localhost/devicemount-operator:dev", dockerfile="Dockerfile.operator", target="operator"
    ),
    Image("localhost/devicemount-agent:dev", dockerfile="Dockerfile.agent", target="agent"),
    Image("localhost/devicemount-hold:dev", dockerfile="Dockerfile.agent", target="hold"),
)


def find_repository(start: Path) -> Path:
    """Return the checkout that holds `start`."""
    for directory in (start, *start.parents):
        if all((directory / image.dockerfile).is_file() for image in IMAGES):
            return directory
    raise NoRepository(f"no checkout of devicemount at or above {start}")


def build_images(layout: Layout, repository: Path) -> dict[str, Path]:
    """Build what is stale; map every image's reference to its archive."""
    base = _make_base(layout)
    archives = {}
    for image in IMAGES:
        archive = archive_path(layout, image.reference)
        _build_if_stale(layout, image, repository=repository, base=base, archive=archive)
        archives[image.reference] = archive
    return archives


def write_release(
    layout: Layout, repository: Path, *, directory: Path, images: Sequence[Image] = IMAGES
) -> dict[str, Path]:
    """Write archives for nodes that pull nothing; map every image's released name to its own.

    The images are built already (build_images).
    """
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    written = {}
    for image in images:
        name = image.release_name(project["version"])
        archive = directory / (name.rpartition("/")[2].replace(":", "-") + ".tar")
        built = archive_path(layout, image.reference)
        if not archive.exists() or archive.stat().st_mtime < built.stat().st_mtime:
            copy_archive(built, archive, reference=name)
        written[name] = archive
    return written


def archive_of(layout: Layout, reference: str) -> Path:
    """Export an image of the store that somebody wants to load."""
    archive = archive_path(layout, reference)
    buildah.export(layout, reference=reference, archive=archive)
    return archive


def copied_sources(dockerfile: str) -> tuple[str, ...]:
    """Return what the COPY instructions take from the context, for all stages."""
    sources: set[str] = set()
    for line in dockerfile.replace("\\\n", " ").splitlines():
        words = line.split()
        if not words or words[0].upper() not in ("COPY", "ADD"):
            continue
        if any(word.startswith("--from=") for word in words):
            continue
        operands = [word for word in words[1:] if not word.startswith("--")]
        if any(character in word for word in operands for character in "[*?$<"):
            raise UnreadableDockerfile(f"only plain paths can be followed: {line.strip()}")
        sources.update(operands[:-1])
    return tuple(sorted(sources))


def hash_inputs(repository: Path, *, dockerfile: str) -> str:
    """Hash a Dockerfile and all that it copies."""
    text = (repository / dockerfile).read_text()
    digest = hashlib.sha256(text.encode())
    for source in copied_sources(text):
        for path in _files_below(repository / source):
            digest.update(f"{path.relative_to(repository)}\0{path.stat().st_mode}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _files_below(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = (p for p in path.rglob("*") if p.is_file())
    return sorted(p for p in found if not set(p.parts) & set(NOT_SOURCE))


def _build_if_stale(
    layout: Layout, image: Image, *, repository: Path, base: str, archive: Path
) -> None:
    note = archive.with_suffix(".inputs")
    inputs = f"{base} {hash_inputs(repository, dockerfile=image.dockerfile)}"
    if archive.exists() and note.exists() and note.read_text() == inputs:
        say(f"image {image.reference} is current")
        return
    buildah.build(
        layout,
        reference=image.reference,
        dockerfile=repository / image.dockerfile,
        context=repository,
        options=[f"--target={image.target}", f"--build-arg=BASE_IMAGE={BASE_IMAGE}"],
    )
    buildah.export(layout, reference=image.reference, archive=archive)
    note.write_text(inputs)


def _make_base(layout: Layout) -> str:
    """Make the base image once for each recipe; return the recipe's hash."""
    recipe = hashlib.sha256(b"".join((DATA / name).read_bytes() for name in BASE_RECIPE))
    wanted = recipe.hexdigest()[:16]
    note = layout.storage / "base"
    if note.exists() and note.read_text() == wanted:
        return wanted
    context = layout.cache / "base"
    archive = context / "base.tar"
    context.mkdir(parents=True, exist_ok=True)
    if not (context / wanted).exists():
        run_with_progress(
            buildah.private_command("base.sh", str(archive)),
            what="making the base of the images (debootstrap)",
            log=layout.log_of("image-base"),
        )
        (context / wanted).touch()
    dockerfile = shutil.copy(DATA / "Dockerfile.base", context)
    buildah.build(layout, reference=BASE_IMAGE, dockerfile=Path(dockerfile), context=context)
    note.write_text(wanted)
    return wanted
