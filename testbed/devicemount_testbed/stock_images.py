# SPDX-License-Identifier: Apache-2.0
"""The three images that tests and nodes need: pause, busybox and scratch-target.

They are written without buildah: a static program and some links each.
"""

import tempfile
from pathlib import Path

from devicemount_testbed.archives import Directory, File, Link, write_archive
from devicemount_testbed.commands import output_of
from devicemount_testbed.layout import DATA, Layout

BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static
PAUSE_IMAGE = "localhost/pause:1"
BUSYBOX_IMAGE = "localhost/busybox:1"
TARGET_IMAGE = "localhost/scratch-target:1"


def archive_path(layout: Layout, reference: str) -> Path:
    """Where the archive of an image lies: localhost/busybox:1 -> busybox-1.tar."""
    return layout.images / (reference.rpartition("/")[2].replace(":", "-") + ".tar")


def make_stock_images(layout: Layout) -> tuple[Path, ...]:
    """Write the archives, which takes less than a second, and return their paths."""
    _write(layout, PAUSE_IMAGE, entries=[_program("pause")], command=["/pause"])
    _write(layout, TARGET_IMAGE, entries=[_program("target")], command=["/target"])
    _write(layout, BUSYBOX_IMAGE, entries=_busybox(), command=["/bin/sleep", "infinity"])
    return tuple(archive_path(layout, name) for name in (PAUSE_IMAGE, TARGET_IMAGE, BUSYBOX_IMAGE))


def _write(
    layout: Layout,
    reference: str,
    *,
    entries: list[File | Link | Directory],
    command: list[str],
) -> None:
    write_archive(
        archive_path(layout, reference), reference=reference, entries=entries, command=command
    )


def _program(name: str) -> File:
    """Return a program at the root of an image."""
    return File(path=name, content=compiled(name))


def compiled(name: str) -> bytes:
    """Compile data/programs/NAME.c into a static program."""
    source = DATA / "programs" / f"{name}.c"
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / name
        output_of(["gcc", "-O2", "-static", "-s", "-o", str(output), str(source)])
        return output.read_bytes()


def _busybox() -> list[File | Link | Directory]:
    applets = output_of([str(BUSYBOX), "--list"]).split()
    return [
        File(path="bin/busybox", content=BUSYBOX.read_bytes()),
        *(Link(path=f"bin/{name}", target="busybox") for name in applets if name != "busybox"),
        Directory(path="tmp"),
    ]
