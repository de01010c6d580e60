# SPDX-License-Identifier: Apache-2.0
"""hold as the image has it, in a pid namespace of its own or with a cgroup to join."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
DEADLINE_S = 5.0


def wait_until(condition: Callable[[], object], *, what: str) -> None:
    """Return as soon as `condition` is true; fail the test after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {DEADLINE_S} s: {what}")
        time.sleep(0.005)


def compiled(source: Path, *, into: Path) -> Path:
    binary = into / source.stem
    command = ["gcc", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", str(binary), str(source)], check=True)
    return binary


@pytest.fixture(scope="session")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(REPOSITORY / "agent/hold/hold.c", into=tmp_path_factory.mktemp("hold"))


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(Path(__file__).with_name("forge.c"), into=tmp_path_factory.mktemp("forge"))


@dataclass(frozen=True, slots=True)
class Fence:
    """A running `hold`, PID 1 of its own pid namespace."""

    pid: int  # as seen from outside
    unshare: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        return Path(f"/proc/{self.pid}/comm").read_text().strip()

    def status(self, key: str) -> str:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)[key]

    def is_waiting(self) -> bool:
        """Whether it sleeps with nothing pending, which it only does to wait for signals."""
        return (
            self.name.startswith("hold")
            and self.status("State") == "S (sleeping)"
            and int(self.status("ShdPnd"), 16) == 0
        )

    def has_ended(self) -> bool:
        return self.unshare.poll() is not None

    def wait_until_idle(self) -> None:
        """Wait until every signal sent so far has been taken."""
        wait_until(self.is_waiting, what="hold took its signals")

    def attack(self, forge: Path) -> int:
        """Send it all that can be sent from inside; return how many forgeries were delivered."""
        enter = ["nsenter", f"--target={self.pid}", "--pid", str(forge)]
        return int(
            subprocess.run(enter, check=True, capture_output=True, timeout=DEADLINE_S).stdout
        )


@contextmanager
def running(hold: Path) -> Iterator[Fence]:
    command = ["unshare", "--pid", "--fork", "--kill-child", str(hold)]
    with subprocess.Popen(command) as unshare:
        try:
            children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
            wait_until(children.read_text, what="unshare has a child")
            fence = Fence(pid=int(children.read_text()), unshare=unshare)
            wait_until(fence.is_waiting, what="hold waits for signals")
            yield fence
        finally:
            unshare.kill()


@pytest.fixture
def fence(hold: Path) -> Iterator[Fence]:
    with running(hold) as fence:
        yield fence
