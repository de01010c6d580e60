# SPDX-License-Identifier: Apache-2.0
"""Certificates of both sides in directories, as somebody's Secrets would be mounted."""

import datetime
from pathlib import Path

from cryptography.x509.oid import ExtendedKeyUsageOID

from chains import Link
from devicemount_agent_api.identity import to_pem, utc_now
from devicemount_operator.authority import Pair, issue, make_authority

USAGES = {
    "operator": ExtendedKeyUsageOID.CLIENT_AUTH,
    "agent": ExtendedKeyUsageOID.SERVER_AUTH,
}


class Directories:
    """Directories `operator` and `agent`, with what one authority has signed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = make_authority(now=utc_now())
        for side in USAGES:
            (directory / side).mkdir()
            self.write(side)

    def write(
        self,
        side: str,
        *,
        signed_by: Pair | None = None,
        trusted: Pair | None = None,
        name: str = "",
        now: datetime.datetime | None = None,
    ) -> None:
        """Write one side's three files anew."""
        signing = signed_by or self.authority
        name = name or f"devicemount-{side}"
        leaf = issue(signing, name=name, usage=USAGES[side], now=now or utc_now())
        bundle = to_pem([(trusted or signing).certificate])
        self._write(side, chain=leaf.certificate_pem, key=leaf.key_pem, authorities=bundle)

    def write_link(self, side: str, leaf: Link, *, trusted: Link) -> None:
        """Write one side's certificate with its intermediates."""
        bundle = trusted.certificate_pem
        self._write(side, chain=leaf.chain_pem, key=leaf.key_pem, authorities=bundle)

    def _write(self, side: str, *, chain: bytes, key: bytes, authorities: bytes) -> None:
        for file, content in (("tls.crt", chain), ("tls.key", key), ("ca.crt", authorities)):
            (self.directory / side / file).write_bytes(content)
