# SPDX-License-Identifier: Apache-2.0
"""Loads image archives into the containerd of every node, each archive once.

What a node holds is noted beside its state, by the archive's digest, and goes with it.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devicemount_testbed.cluster import Testbed
from devicemount_testbed.errors import CommandFailed
from devicemount_testbed.report import say, took
from devicemount_testbed.topology import Node


def load_everywhere(testbed: Testbed, archives: Sequence[Path]) -> dict[Path, str]:
    """Load what is missing, all nodes at once; return the digest of every archive."""
    digests = {archive: _digest_of(archive) for archive in archives}
    with ThreadPoolExecutor(max_workers=len(testbed.nodes)) as pool:
        for finished in [pool.submit(_load, testbed, node, digests) for node in testbed.nodes]:
            finished.result()
    return digests


def _load(testbed: Testbed, node: Node, digests: Mapping[Path, str]) -> None:
    notes = testbed.layout.node(node) / "loaded"
    notes.mkdir(exist_ok=True)
    for archive, digest in digests.items():
        note = notes / archive.name
        if note.exists() and note.read_text() == digest:
            continue
        began = time.monotonic()
        argv = ["ctr", "--namespace", "k8s.io", "images", "import", str(archive)]
        done = testbed.exec(node, argv)
        if done.returncode != 0:
            raise CommandFailed(argv=argv, status=done.returncode, output=done.stderr)
        note.write_text(digest)
        say(f"loaded {archive.name} into {node.name} in {took(began)}")


def _digest_of(archive: Path) -> str:
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
