# SPDX-License-Identifier: Apache-2.0
"""Puts crun into the cache: of Debian's unstable release, or else the machine's own.

They differ where devicemount works. The one of Debian 12, of early 2023, puts processes and program
one cgroup below the scope and replaces the program when a container is updated; a later one leaves
the program to systemd. Tests learn from the record which one runs.
"""

import hashlib
import shutil
from pathlib import Path

from devicemount_testbed.commands import output_of, run_with_progress
from devicemount_testbed.errors import CommandFailed
from devicemount_testbed.layout import DATA, Layout
from devicemount_testbed.report import say

OWN_CRUN = Path("/usr/bin/crun")
LIBRARY = DATA / "programs/memlock.c"
RECIPE = (DATA / "crun.sh", LIBRARY, Path(__file__))
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def make_crun(layout: Layout) -> None:
    """Make `crun` once for each recipe; remove its stamp to try again for a newer one."""
    stamp = layout.bin / ".stamps/crun"
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in RECIPE)).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(layout.crun, ignore_errors=True)
    layout.crun.mkdir(parents=True)
    library = layout.crun / "memlock.so"
    output_of(["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(LIBRARY), "-ldl"])
    try:
        run_with_progress(
            ["bash", str(DATA / "crun.sh"), str(layout.crun)],
            what="fetching crun of Debian's unstable release",
            log=layout.log_of("crun"),
        )
        _install(layout, layout.crun / "root/usr/bin/crun", root=layout.crun / "root")
    except CommandFailed as error:
        say(f"no newer crun, nodes run the machine's own: {error}")
        _install(layout, OWN_CRUN)
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(wanted)


def crun_version(layout: Layout) -> str:
    """Return the version of the nodes' crun: `crun version 1.28` -> "1.28"."""
    return output_of([str(layout.bin / "crun"), "--version"]).split()[2]


def _install(layout: Layout, program: Path, *, root: Path | None = None) -> None:
    """Copy the program to `bin`; with a root it uses the loader and the libraries below that."""
    draft = layout.bin / ".crun.draft"
    shutil.copy(program, draft)
    if root is not None:
        loader = output_of(["patchelf", "--print-interpreter", str(draft)]).strip()
        _patch(draft, "--set-interpreter", f"{root}/usr{loader}")
        _patch(draft, "--force-rpath", "--set-rpath", str(root / LIBRARIES))
    _patch(draft, "--add-needed", str(layout.crun / "memlock.so"))
    output_of([str(draft), "--version"])
    draft.replace(layout.bin / "crun")


def _patch(program: Path, *change: str) -> None:
    """Make one change; patchelf 0.14 mixes up the texts of several."""
    output_of(["patchelf", *change, str(program)])
