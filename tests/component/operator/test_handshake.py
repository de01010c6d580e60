# SPDX-License-Identifier: Apache-2.0
"""Whose certificate keeps operator and agent apart: real handshakes, exact words."""

import asyncio
import datetime
import re
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from chains import DAY, Link
from component.operator import stub_agent
from component.operator.mounted import Directories
from devicemount_agent_api.identity import Identity, utc_now
from devicemount_operator import handshake
from devicemount_operator.authority import LEAF_LIFE, make_authority
from devicemount_operator.handshake import Handshake, explain, shake_hands

RENEW_AGENTS = ": renew the one in Secret devicemount-agent-tls; if that is another one"
RENEW_OURS = ": renew the one in Secret devicemount-operator-tls; if it is new, wait until"
TIME = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"
CA = "CN=devicemount-ca-[0-9a-f]{8}"


def _good(files: Directories) -> None:
    pass


def _expired(files: Directories) -> None:
    files.write("agent", now=utc_now() - LEAF_LIFE)


def _early(files: Directories) -> None:
    files.write("agent", now=utc_now() + LEAF_LIFE / 2)


def _foreign(files: Directories) -> None:
    files.write("agent", signed_by=make_authority(now=utc_now()), trusted=files.authority)


def _misnamed(files: Directories) -> None:
    files.write("agent", name="notebook")


def _own_expired(files: Directories) -> None:
    files.write("operator", now=utc_now() - LEAF_LIFE)


def _own_foreign(files: Directories) -> None:
    files.write("operator", signed_by=make_authority(now=utc_now()), trusted=files.authority)


def _not_read_yet(files: Directories) -> None:
    """The agent does not trust yet what the operator shows rightly."""
    files.write("agent", trusted=make_authority(now=utc_now()))


def _different_intermediates(files: Directories) -> None:
    """One root, and each side's certificate is another intermediate's."""
    root = Link.root("root", until=utc_now() + DAY)
    for side in ("operator", "agent"):
        files.write_link(side, _below(root, side), trusted=root)


def _different_intermediates_and_own_expired(files: Directories) -> None:
    root = Link.root("root", until=utc_now() + DAY)
    files.write_link("agent", _below(root, "agent"), trusted=root)
    files.write_link("operator", _below(root, "operator", until=utc_now() - DAY), trusted=root)


def _intermediate_of_another_root(files: Directories) -> None:
    foreign, root = (Link.root(name, until=utc_now() + DAY) for name in ("foreign", "root"))
    files.write_link("agent", _below(foreign, "agent"), trusted=root)
    files.write_link("operator", _below(root, "operator"), trusted=root)


def _intermediate_not_sent(files: Directories) -> None:
    """The operator has it, but in its own chain: that is no help to the agent's."""
    root = Link.root("root", until=utc_now() + DAY)
    issuing = root.intermediate("issuing")
    files.write_link("operator", issuing.leaf("devicemount-operator"), trusted=root)
    alone = replace(issuing.leaf("devicemount-agent"), above=())
    files.write_link("agent", alone, trusted=root)


def _below(root: Link, side: str, *, until: datetime.datetime | None = None) -> Link:
    return root.intermediate(f"{side}-issuing").leaf(f"devicemount-{side}", until=until)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_good, "^$"),
        (_different_intermediates, "^$"),
        (
            _different_intermediates_and_own_expired,
            f"^the agent on node n1 refuses the operator's certificate, which expired at {TIME}",
        ),
        (
            _intermediate_of_another_root,
            "n1 is signed by CN=agent-issuing, which is not trusted here: CN=root is"
            + RENEW_AGENTS,
        ),
        (
            _intermediate_not_sent,
            "n1 is signed by CN=issuing, which is not trusted here: CN=root is" + RENEW_AGENTS,
        ),
        (_expired, f"^the certificate of the agent on node n1 expired at {TIME}{RENEW_AGENTS}"),
        (_early, f"agent on node n1 is not valid before {TIME}{RENEW_AGENTS}"),
        (_foreign, f"n1 is signed by {CA}, which is not trusted here: {CA} is{RENEW_AGENTS}"),
        (_misnamed, f"n1 is for notebook, not for devicemount-agent{RENEW_AGENTS}"),
        (
            _own_expired,
            f"^the agent on node n1 refuses the operator's certificate, which expired at {TIME}"
            + RENEW_OURS,
        ),
        (_own_foreign, f"which is signed by {CA}, which is not trusted here: {CA} is{RENEW_OURS}"),
        (_not_read_yet, f"refuses the operator's certificate, which is signed by {CA}{RENEW_OURS}"),
    ],
)
async def test_the_certificate_is_named_that_is_wrong(
    tmp_path: Path, spoil: Callable[[Directories], None], said: str
) -> None:
    files = Directories(tmp_path)
    spoil(files)
    ours = Identity.from_directory(tmp_path / "operator")
    async with stub_agent.serving(tmp_path) as agent:
        seen = await asyncio.to_thread(shake_hands, "127.0.0.1", agent.port, ours)
    assert re.search(said, explain(seen, ours, node="n1"))


def test_an_agent_that_hesitates_has_shown_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or an operator that waits for it would take it for one that is switched off."""
    monkeypatch.setattr(handshake, "TIMEOUT_S", 0.2)
    Directories(tmp_path)
    ours = Identity.from_directory(tmp_path / "operator")
    shows = Identity.from_directory(tmp_path / "agent")
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as agent:
        done = threading.Event()
        agent.submit(_be_silent_after_the_handshake, listening, tmp_path / "agent", done)
        try:
            seen = shake_hands("127.0.0.1", listening.getsockname()[1], ours)
        finally:
            done.set()
    assert seen == Handshake(shown=shows.leaf, refused=False)


def _be_silent_after_the_handshake(
    listening: socket.socket, files: Path, done: threading.Event
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # they would be sent after the handshake
    context.load_cert_chain(files / "tls.crt", files / "tls.key")
    plain, _ = listening.accept()
    with plain, context.wrap_socket(plain, server_side=True):
        done.wait(timeout=10.0)


def test_nobody_there_is_nobodys_certificate(tmp_path: Path) -> None:
    Directories(tmp_path)
    ours = Identity.from_directory(tmp_path / "operator")
    with socket.socket() as bound:  # but not listening
        bound.bind(("127.0.0.1", 0))
        seen = shake_hands("127.0.0.1", bound.getsockname()[1], ours)
    assert seen == Handshake()
    assert explain(seen, ours, node="n1") == ""
