# SPDX-License-Identifier: Apache-2.0
"""Package, images and manifests have one version, and the parts say it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from devicemount_agent_api.version import VERSION

ROOT = Path(__file__).parents[3]


def test_the_package_has_it() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


@pytest.mark.parametrize("name", ["Dockerfile.agent", "Dockerfile.operator"])
def test_every_image_that_is_shipped_has_it(name: str) -> None:
    text = (ROOT / name).read_text()
    labelled = re.findall(r"^LABEL org\.opencontainers\.image\.version=(\S+)$", text, re.MULTILINE)
    assert labelled == [VERSION] * text.count("COPY LICENSE /LICENSE")


@pytest.mark.parametrize("name", ["base", "moffett-device-plugin"])
def test_manifests_name_images_of_it(name: str) -> None:
    text = (ROOT / "manifests" / name / "kustomization.yaml").read_text()
    tags = re.findall(r"newTag: ([^\s}]+)", text)
    assert set(tags) == {VERSION}


def test_the_device_plugin_says_it() -> None:
    command = [sys.executable, "-m", "devicemount_plugin", "--version"]
    assert subprocess.check_output(command, text=True) == f"{VERSION}\n"
