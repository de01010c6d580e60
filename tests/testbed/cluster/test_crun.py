# SPDX-License-Identifier: Apache-2.0
"""Where Debian's unstable release cannot be reached, nodes have the machine's own crun."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from devicemount_testbed import crun
from devicemount_testbed.commands import output_of
from devicemount_testbed.errors import CommandFailed
from devicemount_testbed.layout import Layout


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A cache of its own, and no network."""

    def fail(argv: Sequence[str], **_: object) -> None:
        raise CommandFailed(argv=argv, status=100, output="no route to host")

    monkeypatch.setattr(crun, "run_with_progress", fail)
    made = Layout(cache=tmp_path)
    made.bin.mkdir()
    return made


def test_the_machines_own_runs_where_no_newer_one_can_be_fetched(layout: Layout) -> None:
    crun.make_crun(layout)
    own = output_of([str(crun.OWN_CRUN), "--version"]).split()[2]
    assert crun.crun_version(layout) == own
    linked = output_of(["patchelf", "--print-needed", str(layout.bin / "crun")]).split()
    assert linked[0] == str(layout.crun / "memlock.so")


def test_it_is_made_once(layout: Layout) -> None:
    crun.make_crun(layout)
    before = (layout.bin / "crun").stat().st_mtime_ns
    crun.make_crun(layout)
    assert (layout.bin / "crun").stat().st_mtime_ns == before
