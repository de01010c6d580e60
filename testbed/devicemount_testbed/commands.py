# SPDX-License-Identifier: Apache-2.0
"""Runs programs to their end: output comes back whole, or long ones tell that they are alive."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from devicemount_testbed.errors import CommandFailed
from devicemount_testbed.report import say, took

PROGRESS_EVERY_S = 15.0


def output_of(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str | None = None
) -> str:
    """Run to the end and return standard output; raise CommandFailed with both outputs."""
    done = run(argv, env=env, stdin=stdin)
    if done.returncode != 0:
        raise CommandFailed(argv=argv, status=done.returncode, output=done.stdout + done.stderr)
    return done.stdout


def run(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end, whatever the exit status; nothing of the terminal reaches the program."""
    return subprocess.run(
        argv,
        env=env,
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def run_with_progress(
    argv: Sequence[str],
    *,
    what: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run a long program into a log file, with a line at the start, each 15 s and at the end."""
    say(f"{what} ...")
    began = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
        )
        try:
            _wait_with_progress(process, what=what, began=began)
        except BaseException:
            process.kill()
            process.wait()
            raise
    if process.returncode != 0:
        tail = log.read_text(errors="replace").splitlines()[-30:]
        raise CommandFailed(argv=argv, status=process.returncode, output="\n".join(tail))
    say(f"{what} took {took(began)}")


def _wait_with_progress(process: subprocess.Popen[bytes], *, what: str, began: float) -> None:
    while True:
        try:
            process.wait(timeout=PROGRESS_EVERY_S)
        except subprocess.TimeoutExpired:
            say(f"{what}: {took(began)} so far")
        else:
            return
