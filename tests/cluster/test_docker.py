# SPDX-License-Identifier: Apache-2.0
"""Docker loads the released archives, as a node with cri-dockerd and without a registry would."""

import os
import re
import subprocess
from pathlib import Path

from cluster.pages import DOCS, blocks
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.images import IMAGES, write_release
from node.agent.docker_engine import engine

ROOT = DOCS.parent
(LOAD,) = (
    line
    for block in blocks(DOCS / "install.md")
    for line in block.script.splitlines()
    if "docker load" in line
)


def test_docker_loads_an_archive_by_the_name_that_the_manifests_have(
    testbed: Testbed, tmp_path: Path
) -> None:
    (wanted,) = set(
        re.findall(
            r"image: (\S*devicemount-hold:\S+)", (ROOT / "manifests/install.yaml").read_text()
        )
    )
    hold = [image for image in IMAGES if image.target == "hold"]
    write_release(testbed.layout, ROOT, directory=tmp_path, images=hold)
    with engine(tmp_path) as docker:
        subprocess.run(
            ["bash", "-euc", LOAD],
            cwd=tmp_path,
            env={
                "PATH": f"{docker.programs}/usr/bin:{os.environ['PATH']}",
                "DOCKER_HOST": f"unix://{docker.socket}",
            },
            check=True,
        )
        named = docker.docker("image", "inspect", '--format={{join .RepoTags " "}}', wanted)
    assert named == wanted
