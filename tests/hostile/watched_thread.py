# SPDX-License-Identifier: Apache-2.0
"""Enters a mount namespace as the agent does, and prints what the interpreter was asked meanwhile.

A program of its own: an audit hook cannot be taken off again, and nothing else should live with it.
Usage: watched_thread.py NAMESPACE_FD
"""

import json
import os
import sys
import threading

from devicemount_agent.kernel import namespace
from devicemount_agent.kernel.syscall import Prepared, number, prepared

SYS_GETPID = number(x86_64=39, aarch64=172)
SYS_CLOSE = number(x86_64=3, aarch64=57)
BAD_FD = 1 << 20
HARMLESS = "ctypes.get_errno"  # a number of the thread's own

watched: set[int] = set()
seen: list[str] = []
real = namespace.made


def note(event: str, _: object) -> None:
    if threading.get_ident() in watched and event != HARMLESS:
        seen.append(event)


def made(call: Prepared) -> int:
    """Watch the thread from the moment in which it enters."""
    watched.add(threading.get_ident())
    return real(call)


def main() -> None:
    namespace.made = made  # type: ignore[attr-defined]
    calls = [prepared(SYS_GETPID), prepared(SYS_CLOSE, BAD_FD), prepared(SYS_GETPID)]
    sys.addaudithook(note)
    results = namespace.within(int(sys.argv[1]), calls)
    watched.clear()
    json.dump({"pid": os.getpid(), "results": results, "seen": seen}, sys.stdout)


main()
