# SPDX-License-Identifier: Apache-2.0
"""`identity` for a process that has no room for it: a program that lives for one question.

    python -m devicemount_agent_api.identity_process < question > answer

The question says of which directory, under which name, and what was known before; the answer what
is shown and trusted, what is amiss, what is known now, and when time alone may change that. The
asking process keeps what is known without a look into it. Keys pass through pipes only.
"""

import base64
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from cryptography import x509

from devicemount_agent_api.identity import (
    Held,
    Identity,
    MountedIdentity,
    Succession,
    to_pem,
    utc_now,
)
from devicemount_agent_api.identity_files import DOCUMENT_LIMIT_BYTES


def answer(question: bytes, *, now: datetime.datetime) -> bytes:
    """Answer one question. Raises ValueError, KeyError and BadIdentity for what is none."""
    asked = json.loads(question)
    known = _to_succession(asked["known"]) if asked["known"] else None
    mounted = MountedIdentity(Path(asked["directory"]), known=known, clock=lambda: now)
    amiss = mounted.amiss(asked["name"])
    succession = mounted.succession
    if succession is None:
        said: dict[str, Any] = {"known": None, "shown": None, "amiss": amiss, "next": None}
    else:
        change = succession.next_change(now=now)
        said = {
            "known": _from_succession(succession),
            "shown": _from_identity(succession.shown(now=now)),
            "amiss": amiss,
            "next": change.isoformat() if change else None,
        }
    return json.dumps(said).encode()


def _from_identity(identity: Identity) -> dict[str, str]:
    return {
        "key": _from_bytes(identity.key),
        "chain": _from_bytes(identity.chain),
        "trusted": _from_bytes(identity.trusted),
    }


def _to_identity(document: dict[str, Any]) -> Identity:
    key, chain, trusted = (_to_bytes(document[name]) for name in ("key", "chain", "trusted"))
    return Identity.from_pem(key=key, chain=chain, authorities=trusted)


def _from_succession(succession: Succession) -> dict[str, Any]:
    former = succession.former
    return {
        "newest": _from_identity(succession.newest),
        "former": former
        and {"identity": _from_identity(former.identity), "until": former.until.isoformat()},
        "kept": _from_bytes(to_pem(succession.kept)),
    }


def _to_succession(document: dict[str, Any]) -> Succession:
    former, kept = document["former"], _to_bytes(document["kept"])
    return Succession(
        newest=_to_identity(document["newest"]),
        former=Held(
            _to_identity(former["identity"]),
            until=datetime.datetime.fromisoformat(former["until"]),
        )
        if former
        else None,
        kept=tuple(x509.load_pem_x509_certificates(kept)) if kept else (),
    )


def _from_bytes(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _to_bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def main() -> int:
    """Answer the question on standard input."""
    question = sys.stdin.buffer.read(DOCUMENT_LIMIT_BYTES + 1)
    if len(question) > DOCUMENT_LIMIT_BYTES:
        sys.stderr.write("the question is too long\n")
        return 1
    sys.stdout.buffer.write(answer(question, now=utc_now()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
