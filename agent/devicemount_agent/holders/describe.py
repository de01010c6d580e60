# SPDX-License-Identifier: Apache-2.0
"""How a holder is named: its pid as its container knows it, its command line.

A process can make whoever reads its command line wait for ever (its memory may be backed by a file
system of its own), so a child reads it, with a deadline, and the kernel's short name stands in.
"""

import subprocess
from contextlib import suppress
from pathlib import Path

from devicemount_agent.kernel.files import lines_of

COMMAND_BYTES = 256
_TIMEOUT_S = 0.2
_TERMINAL, _START_TIME = 4, 19  # of the fields after the command: fields 7 and 22


def pid_inside(pid: int) -> int:
    """Return the pid in the process's own pid namespace.

    Raises FileNotFoundError, ProcessLookupError.
    """
    for line in lines_of(f"/proc/{pid}/status"):
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


def command(pid: int) -> str:
    """Return the command line on one line, cut to 256 bytes.

    Raises FileNotFoundError, ProcessLookupError.
    """
    line = _command_line(pid)
    return printable(line) if line else short_name(pid)


def short_name(pid: int) -> str:
    """Return the kernel's name of a process, which never waits.

    Raises FileNotFoundError, ProcessLookupError.
    """
    return printable(Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n"))


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks after the boot: with the pid, which one it is.

    Raises FileNotFoundError, ProcessLookupError.
    """
    return int(_stat(Path(f"/proc/{pid}/stat"))[_START_TIME])


def controlling_terminal(pid: int) -> int:
    """Return the device number of a process's controlling terminal, 0 for none.

    Raises FileNotFoundError, ProcessLookupError.
    """
    return int(_stat(Path(f"/proc/{pid}/stat"))[_TERMINAL]) & 0xFFFFFFFF  # told as a signed one


def states(pid: int) -> set[str]:
    """Return the states that its tasks are in: R, S, D and so on. Waits for nobody: who executes
    another program, and waits for a file server there, can keep who reads its stat waiting."""
    found, tasks = set(), Path(f"/proc/{pid}/task")
    with suppress(FileNotFoundError, ProcessLookupError):  # it ends at this moment
        for task in tuple(tasks.iterdir()):
            with suppress(FileNotFoundError, ProcessLookupError):
                found |= {line.split()[1] for line in lines_of(task / "status") if _is_state(line)}
    return found


def _is_state(line: str) -> bool:
    return line.startswith("State:")


def printable(raw: bytes) -> str:
    """Join arguments by spaces, escape control characters, cut to 256 bytes and mark the cut."""
    text = raw.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    encoded = escaped.encode()
    if len(encoded) <= COMMAND_BYTES:
        return escaped
    return encoded[: COMMAND_BYTES - 3].decode(errors="ignore") + "..."


def _stat(path: Path) -> list[bytes]:
    """Return the fields of proc_pid_stat(5) after the command, which may hold anything."""
    return path.read_bytes().rpartition(b")")[2].split()


def _command_line(pid: int) -> bytes:
    """Return the raw command line, empty when the process has none or does not let it be read."""
    try:
        reader = subprocess.Popen(
            ["head", "-c", str(COMMAND_BYTES + 1), f"/proc/{pid}/cmdline"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except FileNotFoundError:  # an image without head: not to be taken for a process that ended
        return b""
    try:
        return reader.communicate(timeout=_TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        reader.kill()  # not waited for: it may hang in the kernel; Popen reaps it later
        return b""
