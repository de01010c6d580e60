# SPDX-License-Identifier: Apache-2.0
"""The server's credentials follow what is mounted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from devicemount_agent_api import tls


@dataclass(frozen=True)
class Shown:
    key: bytes
    chain: bytes = b"chain"
    trusted: bytes = b"trusted"


class Mounted:
    def __init__(self, shown: Shown) -> None:
        self.shown = shown

    def now_shown(self) -> Shown:
        return self.shown


def test_grpc_is_told_only_of_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    fetchers: list[Callable[[], Any]] = []
    monkeypatch.setattr(
        grpc, "dynamic_ssl_server_credentials", lambda _, fetch, **__: fetchers.append(fetch)
    )
    monkeypatch.setattr(
        grpc, "ssl_server_certificate_configuration", lambda pairs, root_certificates: pairs
    )
    mounted = Mounted(Shown(b"first"))
    tls.server_credentials(mounted)
    (fetch,) = fetchers
    assert fetch() is None
    mounted.shown = Shown(b"first")  # read anew, and the same
    assert fetch() is None
    mounted.shown = Shown(b"second")
    assert fetch() == [(b"second", b"chain")]
    assert fetch() is None
