# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with the testbed, told to a person by the command line in one paragraph."""

from collections.abc import Sequence
from pathlib import Path


class TestbedError(Exception):
    """Root of everything that the command reports without a traceback."""

    __test__ = False  # pytest would collect the name


class MachineUnfit(TestbedError):
    """The machine lacks what the testbed needs and cannot install itself."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "this machine cannot run the testbed:\n" + "\n".join(f"  - {p}" for p in problems)
        )


class CommandFailed(TestbedError):
    """A program that the testbed ran ended with an error."""

    def __init__(self, *, argv: Sequence[str], status: int, output: str) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.output = output
        super().__init__(f"exit status {status}: {' '.join(argv)}\n{output.rstrip()}".rstrip())


class NotRunning(TestbedError):
    """There is no running testbed."""

    def __init__(self, *, state: Path) -> None:
        super().__init__(f"no testbed is running (no record in {state}); start it: up")


class ForeignTestbed(TestbedError):
    """Names of the testbed are taken, but this cache has no record of it."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(
            f"network namespaces {', '.join(names)} exist, but not by this cache's testbed: "
            "end that one first (another DEVICEMOUNT_CACHE?)"
        )


class Timeout(TestbedError):
    """A condition did not come true before its deadline."""

    def __init__(self, *, what: str, seconds: float, hint: str) -> None:
        super().__init__(f"{what}: not within {seconds:.0f} s; {hint}")


class ComponentDied(TestbedError):
    """A process of the testbed ended while the testbed waited for it."""

    def __init__(self, *, component: str, log: Path) -> None:
        tail = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
        super().__init__("\n".join([f"{component} ended; the end of {log}:", *tail]))


class UnknownNode(TestbedError):
    """A node name that the testbed does not have."""


class UnknownComponent(TestbedError):
    """A component name that has no log."""


class NoRepository(TestbedError):
    """Images and manifests come from a checkout, and none was found."""


class UnreadableDockerfile(TestbedError):
    """A COPY that the testbed cannot follow, so that it could not tell a stale image."""


class RolloutFailed(TestbedError):
    """A deployed workload did not become ready."""
