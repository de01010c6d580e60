# SPDX-License-Identifier: Apache-2.0
"""A minute of what systemd does, with each runtime."""

import os
import sys

import pytest

from cluster.test_drift import outlast
from cluster.world import World

STORM_S = float(os.environ.get("SOAK_STORM_S", "60"))


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_grant_outlasts_what_systemd_does(
    world: World, runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = outlast(world, runtime, seconds=STORM_S)
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")
